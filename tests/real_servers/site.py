"""A whole site for a test: Postfix, Dovecot, the agent as a process, and Prometheus with its rules."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import HTTP, PATIENCE, free_port, wait_until
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.relay import Relay

CONFIGURATION = """\
agent:
  location: test
  listen: 127.0.0.1:{listen}
  ledger: sqlite:{directory}/ledger.db
servers:
  submission:
    {{protocol: smtp, host: 127.0.0.1, port: {smtp}, tls: starttls, tls_server_name: localhost, tls_ca: {ca},
     username: {user}, password: {{file: password}}}}
  pop:
    {{protocol: pop3, host: 127.0.0.1, port: {pop}, tls: implicit, tls_server_name: localhost, tls_ca: {ca}}}
mailboxes:
  canary:
    {{address: {user}, server: pop, username: {user}, password: {{file: password}}}}
probes:
  - {{name: trip, kind: roundtrip, interval: 1s, deadline: {deadline},
     from: {user}, send_via: submission, to: canary}}
  - {{name: smtp, kind: smtp, interval: 1s, server: submission, mail_from: {user}, rcpt_to: {user}}}
  - {{name: pop3, kind: pop3, interval: 5s, mailbox: canary}}
"""


MAILSONDE = (sys.executable, "-m", "monitor")
"""The command as a process that a test may kill."""


class AgentProcess:
    """`mailsonde run` as a process, by ``command`` and with ``options`` of `subprocess.Popen`.

    It must be ready within ``seconds``, and end within ``seconds``.
    """

    def __init__(
        self,
        config: Path,
        log: Path,
        port: int,
        *,
        seconds: float = PATIENCE,
        command: Sequence[str] = MAILSONDE,
        **options: Any,
    ) -> None:
        self._log = log
        self._seconds = seconds
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "run", "--config", config], stdout=output, stderr=output, **options
            )
        self.address = f"http://127.0.0.1:{port}"
        wait_until(self._ready, "the agent is ready", seconds, log)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return HTTP.get(f"{self.address}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        """Return the sum of the samples whose name begins with ``name``, with the labels behind it."""
        name, _, labels = name.partition("{")
        wanted = re.findall(r'\w+="[^"]*"', labels)
        lines = HTTP.get(f"{self.address}/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(name) and all(one in line for one in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the agent and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=self._seconds)


@contextmanager
def agent_of(directory: Path, servers_and_probes: str) -> Iterator[AgentProcess]:
    """Run an agent with these configured servers and probes during the block."""
    port, config = free_port(), directory / "mailsonde.yaml"
    agent_settings = f"agent: {{listen: '127.0.0.1:{port}', ledger: 'sqlite:{directory}/ledger.db'}}\n"
    config.write_text(agent_settings + servers_and_probes)
    agent = AgentProcess(config, directory / "agent.log", port)
    try:
        yield agent
    finally:
        agent.stop()


class Site:
    """All servers, in ``directory``; a context manager that stops them at the end."""

    def __init__(
        self, directory: Path, tls: TlsFiles, *, deadline: str = "10s", relayed: bool = False
    ) -> None:
        self.directory = directory
        directory.chmod(0o755)
        self._stack = ExitStack()
        self.dovecot = Dovecot(directory / "dovecot", tls)
        self._stack.callback(self.dovecot.stop)
        self.relay = self._stack.enter_context(Relay(self.dovecot)) if relayed else None
        self.postfix = Postfix(directory / "postfix", self.dovecot, tls, relay=self.relay)
        self._stack.callback(self.postfix.stop)
        self.port = free_port()
        self.config = directory / "mailsonde.yaml"
        (directory / "password").write_text(Dovecot.password)
        self.config.write_text(
            CONFIGURATION.format(
                listen=self.port,
                directory=directory,
                smtp=self.postfix.submission_port,
                pop=self.dovecot.pop3s_port,
                ca=tls.authority,
                user=Dovecot.address,
                deadline=deadline,
            )
        )

    def start_agent(self) -> AgentProcess:
        """Start the agent; it stops with the site."""
        agent = AgentProcess(self.config, self.directory / "agent.log", self.port)
        self._stack.callback(agent.stop)
        return agent

    def start_prometheus(self, exporter: int | None = None) -> Prometheus:
        """Start Prometheus with the rendered configuration and rules; it also scrapes `exporter`, a port."""
        rendered = self.directory / "rendered"
        for what, out in (("alerts", rendered / "rules"), ("prometheus", rendered)):
            render = [sys.executable, "-m", "monitor", "render", what]
            subprocess.run([*render, "--config", self.config, "--out", out], check=True, capture_output=True)
        if exporter is not None:
            document = yaml.safe_load((rendered / "prometheus.yml").read_text())
            job = {"job_name": "exchange", "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}]}
            document["scrape_configs"].append(job)
            (rendered / "prometheus.yml").write_text(yaml.safe_dump(document))
        prometheus = Prometheus(self.directory / "prometheus", rendered / "prometheus.yml")
        self._stack.callback(prometheus.stop)
        return prometheus

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
