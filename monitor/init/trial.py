"""Tries the servers before anything is written: connections, logins, and one test message."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from monitor.config.models import Configuration
from monitor.init.endpoint import Endpoint
from monitor.init.writing import ledger_url
from monitor.runner import Result
from monitor.runtime import Runtime, open_runtime
from probes.core.clock import Clock
from probes.core.reasons import Outcome, Reason
from probes.registry import KINDS, MESSAGE_KINDS

CONNECT_SECONDS = 6
"""Time limit for a server's answer to one command during discovery."""

LOGIN_SECONDS = 30
"""Time limit for a login."""

ARRIVAL_SECONDS = 60
"""How long to wait for the test message."""

_LOGINS = frozenset({"smtp", "imap", "pop3"})
_VARIABLE = "MAILSONDE_INIT_PASSWORD"


@asynccontextmanager
async def _temporary(configuration: Configuration, clock: Clock) -> AsyncIterator[Runtime]:
    """Assemble a configuration on a ledger of its own, which is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="mailsonde-init-") as directory:
        agent = configuration.agent.model_copy(update={"ledger": ledger_url(Path(directory) / "ledger.db")})
        async with open_runtime(configuration.model_copy(update={"agent": agent}), clock, "init") as runtime:
            yield runtime


async def reach(
    endpoints: Sequence[Endpoint], tls_ca: Path | None, clock: Clock
) -> list[tuple[Endpoint, str]]:
    """Connect to all endpoints concurrently, encrypt with a verified certificate, and disconnect.

    Returns each endpoint with its obstacle, which is empty if it is usable. Sends no credentials.
    Raises LedgerError.
    """
    if not endpoints:
        return []
    servers = {f"s{number}": _server(endpoint, tls_ca) for number, endpoint in enumerate(endpoints)}
    probes = [
        {
            "name": name,
            "kind": server["protocol"],
            "server": name,
            "interval": "1h",
            "deadline": f"{3 * CONNECT_SECONDS}s",
        }
        for name, server in servers.items()
    ]
    configuration = Configuration.model_validate({"servers": servers, "probes": probes})
    async with _temporary(configuration, clock) as runtime:
        results = await asyncio.gather(*map(runtime.runner.run, runtime.assembly.probes.values()))
    return [(endpoint, _obstacle(result)) for endpoint, result in zip(endpoints, results, strict=True)]


def _server(endpoint: Endpoint, tls_ca: Path | None) -> dict[str, Any]:
    server = {
        "protocol": endpoint.protocol,
        "host": endpoint.host,
        "port": endpoint.port,
        "tls": endpoint.tls,
        "timeout": f"{CONNECT_SECONDS}s",
    }
    return {**server, "tls_ca": str(tls_ca)} if tls_ca is not None and endpoint.tls != "none" else server


def _obstacle(result: Result) -> str:
    verdict = result.verdict
    if verdict.outcome is not Outcome.OK:
        return f"{verdict.reason}: {verdict.detail or verdict.reason.meaning}"
    features = verdict.values.get("features")
    if isinstance(features, list) and not any(feature.startswith("AUTH") for feature in features):
        return f"{Reason.AUTH_NOT_OFFERED}: accepts no login here"
    return ""


async def try_out(
    text: str, password: SecretStr, clock: Clock, told: Callable[[Result], None]
) -> list[Result]:
    """Run the probes of the configuration ``text`` once, with ``password`` instead of its secrets.

    The logins come first. Only if they succeed, one message is sent and DNS is queried. Calls
    ``told`` with each result when it is ready. Raises LedgerError.
    """
    results: list[Result] = []
    async with _temporary(_with_password(yaml.safe_load(text), password), clock) as runtime:
        for kinds in (_LOGINS, KINDS.keys() - _LOGINS):
            ran = await _run(runtime, kinds, told)
            results += ran
            if any(result.verdict.outcome is not Outcome.OK for result in ran):
                break
    return results


def _with_password(data: dict[str, Any], password: SecretStr) -> Configuration:
    """Return the configuration with the time limits of a trial; its secrets are read as in the agent."""
    for account in (*data["servers"].values(), *data["mailboxes"].values()):
        if "password" in account:
            account["password"] = {"env": _VARIABLE}
    for probe in data["probes"]:
        probe["interval"] = "1h"
        probe["deadline"] = f"{ARRIVAL_SECONDS if probe['kind'] in MESSAGE_KINDS else LOGIN_SECONDS}s"
    os.environ[_VARIABLE] = password.get_secret_value()
    try:
        return Configuration.model_validate(data)
    finally:
        del os.environ[_VARIABLE]


async def _run(runtime: Runtime, kinds: Container[str], told: Callable[[Result], None]) -> list[Result]:
    async def run(name: str) -> Result:
        result = await runtime.runner.run(runtime.assembly.probes[name])
        told(result)
        return result

    names = [name for name, probe in runtime.assembly.probes.items() if probe.settings.kind in kinds]
    return await asyncio.gather(*map(run, names))
