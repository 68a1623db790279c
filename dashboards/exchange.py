"""Exchange: which server, directory, certificate, stage or way of mail is sick."""

from __future__ import annotations

from boards import board
from grafana_foundation_sdk.builders import dashboard
from panels import OF_ROW, AnyPanel, Column, graph, listing, slow_mail_from, to
from queries import MOST, PROBE, Query, top

_ROUTE = "on (job, location, probe, target)"
_NODES = f'mailsonde_probe_info{{exchange_node!="",{PROBE}}}'
_WAYS = f'mailsonde_probe_info{{hybrid!="",{PROBE}}}'
_OK = f"mailsonde_probe_success{{{PROBE}}}"
_DIRECTORIES = {
    "owa": "OWA",
    "ecp": "ECP",
    "ews": "EWS",
    "mapi": "MAPI",
    "rpc": "RPC",
    "oab": "OAB",
    "autodiscover": "Autodiscover",
    "Microsoft-Server-ActiveSync": "ActiveSync",
}
"""The headings of the directories that an `exchange` probe checks unless told otherwise."""


def exchange() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Exchange",
        "Exchange servers behind one name, node by node; back pressure; where Exchange itself spends the "
        "time; the ways of a hybrid organization; and where autodiscover leads clients.",
        [*_servers(), *_mail(), _clients()],
    )


def _directory(name: str) -> str:
    """Return PromQL for whether each node serves a directory."""
    of = _NODES.replace('exchange_node!=""', f'exchange_directory="{name}"')
    return top(f"min by (location, probe, exchange_node) ({of} * {_ROUTE} group_left () {_OK})")


def _servers() -> list[AnyPanel]:
    resting = f'mailsonde_probe_failure{{reason="maintenance",{PROBE}}}'
    old = f'mailsonde_finding{{check=~"exchange_build_.*",{PROBE}}}'
    expiry = f'mailsonde_tls_certificate_not_after_timestamp_seconds{{kind="exchange",{PROBE}}}'
    return [
        listing(
            1,
            (0, 0, 24, 8),
            "Virtual directories of each node",
            [Column(_directory(name), head, "bool") for name, head in _DIRECTORIES.items()],
            "One row for each server, by its own address. One red row: look at that server, unless it is in "
            "maintenance. One red column: look at what the servers share, such as an update or a setting.",
            sort=("exchange_node", False),
        ),
        listing(
            2,
            (0, 8, 8, 8),
            "Nodes in maintenance",
            [
                Column(
                    top(f"count by (location, probe, exchange_node) ({_NODES} and {_ROUTE} {resting} == 1)"),
                    "Directories",
                    "short",
                )
            ],
            "Servers that said so themselves, with the number of their directories that do not work. If the "
            "work is done, end it with Set-ServerComponentState.",
            sort=("exchange_node", False),
        ),
        listing(
            3,
            (8, 8, 8, 8),
            "Old builds",
            [Column(top(f"max by (location, probe, target, check, severity) ({old})"), "", "short")],
            "Builds below `minimum_build`, outdated ones, and servers that do not tell theirs. "
            "The live page shows each build. Install the current update.",
            sort=("severity", True),
            links=[to("Server", OF_ROW)],
        ),
        listing(
            4,
            (16, 8, 8, 8),
            "Certificates",
            [
                Column(
                    f"bottomk({MOST}, min by (location, probe, target) ({expiry}) - time())",
                    "Time left",
                    "s",
                )
            ],
            "Of each node, and the organization's Auth certificate, the next to expire first. Renew in time: "
            "the runbook of the alert on the Auth certificate has the steps.",
            sort=("Time left", False),
            links=[to("Server", OF_ROW)],
        ),
    ]


def _mail() -> list[AnyPanel]:
    stages = f"mailsonde_exchange_stage_seconds{{{PROBE}}}"
    total = f"mailsonde_exchange_end_to_end_seconds{{{PROBE}}}"
    way = "by (location, hybrid, connector, probe, target)"
    filtered = f"mailsonde_exchange_filter_info{{{PROBE}}}"
    return [
        slow_mail_from(5, (0, 16, 24, 8)),
        graph(
            6,
            (0, 24, 24, 8),
            "Where the last message spent its time inside Exchange",
            [
                Query(f"avg by (location, stage) ({stages})", "{{stage}} @ {{location}}"),
                Query(f"avg by (location) ({total})", "end to end @ {{location}}"),
            ],
            "Mean seconds by stage, by Exchange's own fields in the message. Agents: a transport agent, "
            "such as a virus scanner. Categorizer: Active Directory or DNS. Hub and delivery: queues and "
            "databases. Select one route.",
        ),
        listing(
            7,
            (0, 32, 12, 8),
            "Ways of hybrid organizations",
            [
                Column(top(f"min {way} ({_WAYS} * {_ROUTE} group_left () {_OK})"), "State", "bool"),
                Column(
                    top(
                        f"max {way} ({_WAYS} * {_ROUTE} group_left () "
                        f"mailsonde_delivery_last_seconds{{{PROBE}}})"
                    ),
                    "Last latency",
                    "s",
                ),
            ],
            "One way fails while the opposite one works: look at its connector. All fail: look at the "
            "servers and mailboxes.",
            sort=("State", False),
            links=[to("Delivery", OF_ROW)],
        ),
        listing(
            8,
            (12, 32, 12, 8),
            "What Exchange's spam filter said",
            [Column(top(f"max by (location, probe, target, scl, sfv, cat) ({filtered})"), "", "short")],
            "SCL, verdict and category of the last arrival. An SCL of 5 or more goes to the junk folder: "
            "check the allow list of the receiving organization.",
            sort=("scl", True),
            links=[to("Delivery", OF_ROW)],
        ),
    ]


def _clients() -> AnyPanel:
    found = f'mailsonde_finding{{check=~"autodiscover_.*",{PROBE}}}'
    return listing(
        9,
        (0, 40, 24, 8),
        "Where autodiscover leads clients",
        [Column(top(f"max by (location, probe, target, check, severity) ({found})"), "", "short")],
        "What is wrong with autodiscover of a domain: no answer, steps that lead to different services, or "
        "other authentication than expected. The live page of the probe shows every step.",
        sort=("severity", False),
        links=[to("Server", OF_ROW)],
    )
