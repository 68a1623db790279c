"""``send_via: mx`` through real BIND, Postfix and Dovecot: each MX host separately."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from monitor.collector import AgentCollector
from monitor.config.load import load
from monitor.runner import Result
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import MessageState
from tests.real_servers.bind import Named
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.greylist import Greylist
from tests.real_servers.postfix import Postfix

pytestmark = pytest.mark.tried("roundtrip", "Postfix", "Dovecot", "BIND")


def configuration(directory: Path, dovecot: Dovecot, tls: TlsFiles, **trip: object) -> Path:
    """Write a configuration with one probe that sends to the MX hosts of example.test."""
    (directory / "password").write_text(Dovecot.password)
    account = {"username": Dovecot.username, "password": {"file": "password"}}
    server = {
        "protocol": "pop3",
        "host": "127.0.0.1",
        "port": dovecot.pop3s_port,
        "tls": "implicit",
        "tls_ca": str(tls.authority),
    }
    probe = {"name": "trip", "kind": "roundtrip", "interval": "60s", "deadline": "30s"}
    probe |= {"from": "canary@example.net", "send_via": "mx", "to": "canary", **trip}
    document = {
        "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
        "servers": {"pop": server},
        "mailboxes": {"canary": {"address": Dovecot.address, "server": "pop", **account}},
        "probes": [probe],
    }
    path = directory / "mailsonde.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def results_of(path: Path) -> tuple[dict[str, Result], str]:
    """Run the probe and its sub-probes; return the results by target, and the targets in the metrics."""
    results: dict[str, Result] = {}
    async with open_runtime(load(path), SystemClock(), "check") as runtime:
        (probe,) = runtime.assembly.probes.values()
        async with asyncio.timeout(60):
            await runtime.run(probe, lambda result: results.update({result.target: result}))
        collector = AgentCollector(runtime.state, lambda: runtime.ledger.counters)
        labels = {s.labels.get("target") for family in collector.collect() for s in family.samples}
        assert await runtime.ledger.discrepancies() == []
    return results, " ".join(sorted(filter(None, labels)))


async def test_dead_backup_mx_is_seen(
    dovecot: Dovecot,
    postfix: Postfix,
    server_tls: TlsFiles,
    start_named: Callable[..., Named],
    tmp_path: Path,
) -> None:
    """Each MX host is a target: the working one delivers, and the dead one fails."""
    records = "@ MX 10 mx1\n@ MX 20 mx2\n@ MX 30 mx3\nmx1 A 127.0.0.1\nmx2 A 127.0.0.2\n"
    named = start_named({"example.test": records})
    mx = {"port": postfix.smtp_port, "resolver": {"address": "127.0.0.1", "port": named.port}}
    results, labels = await results_of(configuration(tmp_path, dovecot, server_tls, mx=mx))
    assert sorted(results) == ["example.test", "mx1.example.test", "mx2.example.test"]
    found, alive, dead = (results[name].verdict for name in sorted(results))
    assert (found.outcome, found.reason) == (Outcome.OK, Reason.MX_TARGET_PARTLY_UNRESOLVED)
    assert found.values == {
        "hosts": ["mx1.example.test", "mx2.example.test"],
        "hosts_without_address": ["mx3.example.test"],
    }
    assert (alive.outcome, alive.reason) == (Outcome.OK, Reason.NONE), alive.detail
    assert alive.message is not None
    assert alive.message.state is MessageState.DELIVERED
    assert "tls" in alive.phases  # opportunistic: the certificate is for other names
    assert (dead.outcome, dead.reason) == (Outcome.FAILED, Reason.CONNECT_REFUSED)
    assert labels == "example.test mx1.example.test mx2.example.test"


async def test_required_tls_wants_the_hosts_name(
    dovecot: Dovecot,
    postfix: Postfix,
    server_tls: TlsFiles,
    start_named: Callable[..., Named],
    tmp_path: Path,
) -> None:
    """With `tls: required`, mail goes only to a host with a certificate for its name."""
    zones = {
        "example.test": "@ MX 10 localhost.\n@ MX 20 mx1\nmx1 A 127.0.0.1\n",
        "localhost": "@ A 127.0.0.1\n",
    }
    named = start_named(zones)
    mx = {
        "port": postfix.smtp_port,
        "tls": "required",
        "tls_ca": str(server_tls.authority),
        "resolver": {"address": "127.0.0.1", "port": named.port},
    }
    results, _ = await results_of(configuration(tmp_path, dovecot, server_tls, mx=mx))
    assert results["localhost"].verdict.reason is Reason.NONE
    assert results["mx1.example.test"].verdict.reason is Reason.CERTIFICATE_NAME


async def test_domain_that_takes_no_mail(
    dovecot: Dovecot, server_tls: TlsFiles, start_named: Callable[..., Named], tmp_path: Path
) -> None:
    """A null MX has its own reason, and nothing is sent."""
    named = start_named({"example.test": "@ MX 0 .\n@ A 127.0.0.1\n"})
    mx = {"resolver": {"address": "127.0.0.1", "port": named.port}}
    results, _ = await results_of(configuration(tmp_path, dovecot, server_tls, mx=mx))
    assert list(results) == ["example.test"]
    assert results["example.test"].verdict.reason is Reason.MX_NULL


async def test_greylisted_at_one_host(
    dovecot: Dovecot,
    server_tls: TlsFiles,
    start_postfix: Callable[..., Postfix],
    start_greylist: Callable[[float], Greylist],
    start_named: Callable[..., Named],
    tmp_path: Path,
) -> None:
    """A greylisting host gets the message at a later try; the run is a warning with the delay."""
    greylist = start_greylist(1.5)
    postfix = start_postfix(dovecot, greylist=greylist)
    named = start_named({"example.test": "@ MX 10 mx1\nmx1 A 127.0.0.1\n"})
    mx = {"port": postfix.smtp_port, "resolver": {"address": "127.0.0.1", "port": named.port}}
    results, _ = await results_of(configuration(tmp_path, dovecot, server_tls, mx=mx, retry="1s"))
    verdict = results["mx1.example.test"].verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.OK, Reason.GREYLISTED)
    assert verdict.is_warning
    # Refused after one second, accepted after two more.
    assert 3.0 <= verdict.values["greylisted_seconds"] <= 6.0
    assert verdict.message is not None
    assert verdict.message.state is MessageState.DELIVERED
    assert (verdict.message.delivery_seconds or 0.0) >= 3.0
