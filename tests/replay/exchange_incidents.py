"""Incidents at Exchange servers behind one name, and between Exchange on premises and Exchange Online."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from probes.core.reasons import Reason
from probes.exchange import AUTH_CERTIFICATE
from tests.replay.incidents import DAY, MINUTE, Effect, Expected, Kind, What, all_of, kind_of, runs_end
from tests.replay.windows_exporter import CERTIFICATE, COMPONENT, COPY, QUEUES, WRITTEN

NODES = ("ex1", "ex2", "ex3")
_PAGE, _WARNING, _NOBODY = Expected.PAGE, Expected.WARNING, Expected.NOBODY


def _of_node(node: str) -> list[str]:
    return [f"{directory}@{node}" for directory in ("owa", "ews")]


def _node(rng: Random) -> str:
    return rng.choice(NODES)


def _node_down(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.ENDS, _of_node(_node(rng)), begins, ends, Reason.CONNECT_TIMEOUT)


def _directory_of_a_node(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.ENDS, [rng.choice(_of_node(_node(rng)))], begins, ends, Reason.EXCHANGE_UNHEALTHY)


def _two_nodes_down(rng: Random, begins: float, ends: float) -> list[Effect]:
    """The second one fails some minutes after the first."""
    later = begins + MINUTE * rng.uniform(4.0, 10.0)
    return [
        *all_of(What.ENDS, _of_node("ex1"), begins, ends, Reason.CONNECT_REFUSED),
        *all_of(What.ENDS, _of_node("ex3"), later, ends, Reason.EXCHANGE_UNHEALTHY),
    ]


def _maintenance(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.ENDS, _of_node(_node(rng)), begins, ends, Reason.MAINTENANCE)


def _maintenance_in_turn(rng: Random, begins: float, ends: float) -> list[Effect]:
    """One node after the other, as an update is installed."""
    share = (ends - begins) / len(NODES)
    return [
        effect
        for turn, node in enumerate(NODES)
        for effect in all_of(
            What.ENDS,
            _of_node(node),
            begins + turn * share,
            begins + (turn + 0.9) * share,
            Reason.MAINTENANCE,
        )
    ]


def _outage_in_maintenance(rng: Random, begins: float, ends: float) -> list[Effect]:
    """A node fails while another one is in maintenance."""
    resting, sick = rng.sample(NODES, 2)
    return [
        *all_of(What.ENDS, _of_node(resting), begins, ends, Reason.MAINTENANCE),
        *all_of(What.ENDS, _of_node(sick), begins + 10 * MINUTE, ends, Reason.CONNECT_TIMEOUT),
    ]


def _lost_run(rng: Random, begins: float, ends: float) -> list[Effect]:
    """A run of each directory of a node fails."""
    return all_of(What.ENDS, _of_node(_node(rng)), begins, ends, Reason.EXCHANGE_UNHEALTHY, once=True)


def _lost_run_elsewhere(rng: Random, begins: float, ends: float) -> list[Effect]:
    """A node is down, and a run of each other node fails meanwhile."""
    sick, *others = rng.sample(NODES, 3)
    middle = (begins + ends) / 2
    elsewhere = [target for node in others for target in _of_node(node)]
    return [
        *all_of(What.ENDS, _of_node(sick), begins, ends, Reason.CONNECT_TIMEOUT),
        *all_of(What.ENDS, elsewhere, middle, ends, Reason.HTTP_UNAVAILABLE, once=True),
    ]


def _auth_ends(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.CERTIFICATE, [AUTH_CERTIFICATE], begins, ends, 10 * DAY)


def _auth_ends_soon(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.CERTIFICATE, [AUTH_CERTIFICATE], begins, ends, 2 * DAY)


def _auth_ended(rng: Random, begins: float, ends: float) -> list[Effect]:
    return [
        *all_of(What.CERTIFICATE, [AUTH_CERTIFICATE], begins, ends, -DAY),
        *all_of(What.ENDS, [AUTH_CERTIFICATE], begins, ends, Reason.CERTIFICATE_EXPIRED),
    ]


def _one_way(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.HELD, [rng.choice(["to-cloud", "to-on-premises"])], begins, ends)


def _pressed(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.PRESSED, ["hub"], begins, ends, 15.0)


def _shown(metric: str, value: float) -> Callable[[Random, float, float], list[Effect]]:
    """Return the effects of a metric that windows_exporter shows of a node."""

    def effects(rng: Random, begins: float, ends: float) -> list[Effect]:
        return all_of(What.SHOWN, [f"{metric} {_node(rng)}"], begins, ends, value)

    return effects


def _queues_of_all(rng: Random, begins: float, ends: float) -> list[Effect]:
    """The queue of one node after the other grows, as the Internet is not reachable."""
    return [
        effect
        for number, node in enumerate(NODES)
        for effect in all_of(
            What.SHOWN,
            [f"{QUEUES}external_largest_delivery {node}"],
            begins + number * 4 * MINUTE,
            ends,
            300.0 + 100 * rng.random(),
        )
    ]


def _queues_unseen(rng: Random, begins: float, ends: float) -> list[Effect]:
    node = _node(rng)
    names = ("submission_queue_length", "external_largest_delivery", "poison")
    return all_of(What.UNSEEN, [f"{QUEUES}{name} {node}" for name in names], begins, ends)


def _certificate(days: float) -> Callable[[Random, float, float], list[Effect]]:
    def effects(rng: Random, begins: float, ends: float) -> list[Effect]:
        return all_of(What.SHOWN, [f"{CERTIFICATE} {_node(rng)}"], begins, ends, begins + days * DAY)

    return effects


def _script_stops(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.SHOWN, [f"{WRITTEN} {_node(rng)}"], begins, ends, begins)


_EVERYTHING = [target for node in NODES for target in _of_node(node)]
KINDS: tuple[Kind, ...] = (
    kind_of("node down", _PAGE, "ExchangeNodeDown", 15, _node_down),
    kind_of("directory of a node sick", _PAGE, "ExchangeNodeDown", 15, _directory_of_a_node),
    kind_of("two nodes down", _PAGE, "ExchangeNodeDown", 25, _two_nodes_down),
    kind_of("run lost beside node down", _PAGE, "ExchangeNodeDown", 20, _lost_run_elsewhere),
    kind_of("node down in maintenance", _PAGE, "ExchangeNodeDown", 30, _outage_in_maintenance),
    kind_of(
        "EWS down, OWA up",
        _PAGE,
        "ExchangeDirectoryDown",
        15,
        runs_end([f"ews@{node}" for node in NODES], Reason.EXCHANGE_UNHEALTHY),
    ),
    kind_of("Exchange down", _PAGE, "ProbeDown", 15, runs_end(_EVERYTHING, Reason.CONNECT_TIMEOUT)),
    kind_of("node in maintenance", _NOBODY, "", 60, _maintenance),
    kind_of("maintenance in turn", _NOBODY, "", 60, _maintenance_in_turn),
    kind_of("maintenance forgotten", _WARNING, "ExchangeNodeInMaintenance", 300, _maintenance),
    kind_of("one run of a node lost", _NOBODY, "", 5, _lost_run),
    kind_of(
        "builds below minimum",
        _WARNING,
        "ExchangeBuildBelowMinimum",
        30,
        runs_end([f"owa@{node}" for node in NODES], Reason.EXCHANGE_OLD_BUILD),
    ),
    kind_of("Auth certificate, weeks", _WARNING, "ExchangeAuthCertificateExpires", 20, _auth_ends),
    kind_of("Auth certificate, days", _PAGE, "ExchangeAuthCertificateExpires", 20, _auth_ends_soon),
    kind_of("Auth certificate ended", _PAGE, "ExchangeAuthCertificateExpires", 20, _auth_ended),
    kind_of("hybrid, one way", _PAGE, "HybridOneWay", 15, _one_way),
    kind_of("back pressure", _WARNING, "BackPressure", 15, _pressed),
    kind_of(
        "blocked for its version", _PAGE, "VersionBlocked", 15, runs_end(["to-cloud"], Reason.VERSION_BLOCKED)
    ),
    kind_of(
        "queue grows", _WARNING, "ExchangeQueueLong", 20, _shown(f"{QUEUES}submission_queue_length", 1500.0)
    ),
    kind_of("queues grow everywhere", _WARNING, "ExchangeQueueLong", 25, _queues_of_all),
    kind_of("a message in poison", _WARNING, "ExchangeQueueLong", 20, _shown(f"{QUEUES}poison", 1.0)),
    kind_of("queue for a moment", _NOBODY, "", 4, _shown(f"{QUEUES}submission_queue_length", 5000.0)),
    kind_of("queues unseen", _WARNING, "ExchangeQueuesUnseen", 30, _queues_unseen),
    kind_of("transport stopped", _WARNING, "ExchangeComponentInactive", 300, _shown(COMPONENT, 0.0)),
    kind_of("database copy sick", _WARNING, "ExchangeDatabaseCopyUnhealthy", 30, _shown(COPY, 0.0)),
    kind_of("server certificate, weeks", _WARNING, "ExchangeCertificateExpires", 30, _certificate(10.0)),
    kind_of("server certificate, days", _PAGE, "ExchangeCertificateExpires", 30, _certificate(2.0)),
    kind_of("script stops", _WARNING, "ExchangeStatesStale", 60, _script_stops),
    kind_of("throttled", _WARNING, "ProbeUnknown", 30, runs_end(["to-cloud"], Reason.THROTTLED)),
)
