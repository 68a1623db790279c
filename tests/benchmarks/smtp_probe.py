"""Processor time of an SMTP STARTTLS probe, compared with Debian's prometheus-blackbox-exporter.

Both run as users run them, concurrently, at the same rate, with the same Postfix, and verify its
certificate: EHLO, STARTTLS, EHLO, QUIT. The time of the exporter's client is not counted.
"""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import httpx

from tests.benchmarks.processes import cpu_seconds, workplace
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import Daemon, free_port, require
from tests.real_servers.site import AgentProcess

GOAL = 0.8
PROBES_A_SECOND = 100
WINDOWS = 7
WINDOW_SECONDS = 6.0

_MODULE = """\
modules:
  starttls:
    prober: tcp
    timeout: 5s
    tcp:
      tls_config: {{ca_file: {ca}, server_name: localhost}}
      query_response:
        - expect: "^220 "
        - send: "EHLO prober\\r"
        - expect: "^250-STARTTLS"
        - expect: "^250 "
        - send: "STARTTLS\\r"
        - expect: "^220 "
        - starttls: true
        - send: "EHLO prober\\r"
        - expect: "^250 "
        - send: "QUIT\\r"
        - expect: "^221 "
"""
_RUNS = 'mailsonde_probe_runs_total{kind="smtp",outcome="ok"'


def start_agent(directory: Path, tls: TlsFiles, port: int) -> AgentProcess:
    """Start an agent with `PROBES_A_SECOND` probes of the server on ``port``, each every second."""
    listen = free_port()
    probes = "".join(
        f"  - {{name: smtp-{n}, kind: smtp, interval: 1s, server: mail}}\n" for n in range(PROBES_A_SECOND)
    )
    config = directory / "agent.yaml"
    config.write_text(
        f"agent: {{listen: '127.0.0.1:{listen}', ledger: 'sqlite:{directory}/ledger.db'}}\n"
        f"servers:\n  mail: {{protocol: smtp, host: 127.0.0.1, port: {port}, tls: starttls, "
        f"tls_server_name: localhost, tls_ca: {tls.authority}}}\nprobes:\n{probes}"
    )
    return AgentProcess(config, directory / "agent.log", listen)


async def _ask_exporter(url: str, seconds: float) -> int:
    """Request probes at the agent's rate; return how many succeeded."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    asked: list[asyncio.Task[httpx.Response]] = []
    async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=20)) as client:
        while (due := begun + len(asked) / PROBES_A_SECOND) < begun + seconds:
            await asyncio.sleep(max(0.0, due - loop.time()))
            asked.append(asyncio.create_task(client.get(url, timeout=10)))
        answers = await asyncio.gather(*asked)
    succeeded = sum("\nprobe_success 1\n" in answer.text for answer in answers)
    if succeeded < len(asked):
        raise SystemExit(f"the exporter failed: {answers[0].text}")
    return succeeded


def measure() -> dict[str, float]:
    """Return milliseconds of processor time per probe, for both, and their ratio: medians of the windows."""
    require("prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
    ours, theirs = [], []
    with workplace() as (directory, tls):
        dovecot = Dovecot(directory / "dovecot", tls)
        postfix = Postfix(directory / "postfix", dovecot, tls)
        module, port = directory / "blackbox.yml", free_port()
        module.write_text(_MODULE.format(ca=tls.authority))
        exporter = Daemon(
            [
                "prometheus-blackbox-exporter",
                f"--config.file={module}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            directory / "blackbox.log",
            ports=[port],
        )
        agent = start_agent(directory, tls, postfix.smtp_port)
        url = f"http://127.0.0.1:{port}/probe?module=starttls&target=127.0.0.1:{postfix.smtp_port}"
        try:
            asyncio.run(_ask_exporter(url, 3.0))  # both warm up
            for _ in range(WINDOWS):
                runs = agent.metric(_RUNS)
                agent_cpu, exporter_cpu = cpu_seconds(agent.process.pid), cpu_seconds(exporter.process.pid)
                asked = asyncio.run(_ask_exporter(url, WINDOW_SECONDS))
                agent_cpu = cpu_seconds(agent.process.pid) - agent_cpu
                exporter_cpu = cpu_seconds(exporter.process.pid) - exporter_cpu
                ours.append(1000 * agent_cpu / (agent.metric(_RUNS) - runs))
                theirs.append(1000 * exporter_cpu / asked)
        finally:
            agent.stop()
            for server in (exporter, postfix, dovecot):
                server.stop()
    return {
        "mailsonde_ms": statistics.median(ours),
        "blackbox_exporter_ms": statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }
