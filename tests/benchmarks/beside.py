"""Processor time of an SMTP STARTTLS probe and of a round trip, compared with another revision.

Both agents run as users run them, concurrently, at the same rate, with the same Postfix and Dovecot. Each
route has a mailbox of its own. The other revision is unpacked from git. Packages that it needs and that are
not installed are downloaded.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import cpu_seconds, workplace
from tests.real_servers.dovecot import DOMAIN, USERS, Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import free_port, wait_until
from tests.real_servers.site import AgentProcess

GOAL = 1.0
ROUTES = 10
RUNS_A_SECOND = {"STARTTLS probe": 40, "round trip by POP3": ROUTES, "round trip by IMAP": ROUTES}
WINDOWS = 7
WINDOW_SECONDS = 6.0

ROOT = Path(__file__).parents[2]

_PROBES = {
    "smtp": "{{name: probe-{n}, kind: smtp, interval: 1s, server: relay}}",
    "roundtrip": (
        "{{name: probe-{n}, kind: roundtrip, interval: 1s, deadline: 10s,"
        " from: {user}, send_via: submission, to: mailbox-{n}}}"
    ),
}
_KINDS = {"STARTTLS probe": "smtp", "round trip by POP3": "roundtrip", "round trip by IMAP": "roundtrip"}
_CONFIGURATION = """\
agent: {{listen: '127.0.0.1:{listen}', ledger: 'sqlite:{directory}/ledger.db'}}
servers:
  relay: {{protocol: smtp, host: 127.0.0.1, port: {smtp}, tls: starttls, {tls}}}
  submission: {{protocol: smtp, host: 127.0.0.1, port: {submission}, tls: starttls, {tls}, {login}}}
  pop3: {{protocol: pop3, host: 127.0.0.1, port: {pop3}, tls: implicit, {tls}, logins_per_minute: 6000}}
  imap: {{protocol: imap, host: 127.0.0.1, port: {imap}, tls: implicit, {tls}}}
mailboxes:
{mailboxes}
probes:
{probes}
"""


@contextmanager
def unpacked(revision: str, directory: Path) -> Iterator[dict[str, Any]]:
    """Unpack a revision and its packages; return the options for a process that runs it."""
    tree, packages = directory / "tree", directory / "packages"
    tree.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", tree], check=True, input=archive.stdout)
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    if missing := [needed for needed in project["dependencies"] if not _is_installed(needed)]:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", packages, *missing]
        subprocess.run(install, check=True)
    yield {"cwd": tree, "env": {**os.environ, "PYTHONPATH": str(packages)}}


def _is_installed(requirement: str) -> bool:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    try:
        distribution(name[0])
    except PackageNotFoundError:
        return False
    return True


def _agent(
    figure: str, directory: Path, user: str, servers: tuple[Postfix, Dovecot, TlsFiles], options: Any
) -> AgentProcess:
    """Start an agent with `RUNS_A_SECOND` probes, each every second, with its own mailboxes."""
    postfix, dovecot, tls = servers
    directory.mkdir()
    config, listen = directory / "agent.yaml", free_port()
    (directory / "password").write_text(dovecot.password)
    reading = "imap" if figure.endswith("IMAP") else "pop3"
    config.write_text(
        _CONFIGURATION.format(
            listen=listen,
            directory=directory,
            smtp=postfix.smtp_port,
            submission=postfix.submission_port,
            pop3=dovecot.pop3s_port,
            imap=dovecot.imaps_port,
            tls=f"tls_server_name: localhost, tls_ca: {tls.authority}",
            login=_login(user),
            mailboxes="\n".join(
                f"  mailbox-{n}: {{address: {owner}, server: {reading}, {_login(owner)}}}"
                for n, owner in enumerate(_owners(user))
            ),
            probes="\n".join(
                f"  - {_PROBES[_KINDS[figure]].format(n=n, user=user)}" for n in range(RUNS_A_SECOND[figure])
            ),
        )
    )
    return AgentProcess(config, directory / "agent.log", listen, **options)


def _login(user: str) -> str:
    return f"username: {user}, password: {{file: password}}"


def _owners(user: str) -> list[str]:
    """Return the addresses of the mailboxes that messages from ``user`` go to."""
    local, _, domain = user.partition("@")
    return [f"{local}-{n}@{domain}" for n in range(ROUTES)]


def _succeeded(agent: AgentProcess, figure: str) -> float:
    return agent.metric(f'mailsonde_probe_runs_total{{kind="{_KINDS[figure]}",outcome="ok"')


def _milliseconds(agents: Mapping[str, AgentProcess], figure: str) -> Iterator[dict[str, float]]:
    """Yield the processor time of a run for each agent, window by window."""
    for agent in agents.values():
        wait_until(
            lambda agent=agent: _succeeded(agent, figure) >= 3 * RUNS_A_SECOND[figure], "it is warm", 60.0
        )
    for _ in range(WINDOWS):
        before = {name: _reading(agent, figure) for name, agent in agents.items()}
        time.sleep(WINDOW_SECONDS)
        after = {name: _reading(agent, figure) for name, agent in agents.items()}
        yield {
            name: 1000 * (after[name][0] - before[name][0]) / (after[name][1] - before[name][1])
            for name in agents
        }


def _reading(agent: AgentProcess, figure: str) -> tuple[float, float]:
    return cpu_seconds(agent.process.pid), _succeeded(agent, figure)


def measure(revision: str, figure: str) -> dict[str, float]:
    """Return milliseconds of processor time per run, for both, and their ratio: medians over the windows."""
    with workplace() as (directory, tls), ExitStack() as stack:
        other = stack.enter_context(unpacked(revision, directory))
        owners = [owner.partition("@")[0] for user in USERS[:2] for owner in _owners(user)]
        dovecot = Dovecot(directory / "dovecot", tls, users=(*USERS, *owners))
        stack.callback(dovecot.stop)
        postfix = Postfix(directory / "postfix", dovecot, tls)
        stack.callback(postfix.stop)
        agents = {}
        for name, user, options in (("this", USERS[0], {"cwd": ROOT}), (revision, USERS[1], other)):
            place = directory / f"agent-{user}"
            agent = _agent(figure, place, f"{user}@{DOMAIN}", (postfix, dovecot, tls), options)
            stack.callback(agent.stop)
            agents[name] = agent
        windows = list(_milliseconds(agents, figure))
    return {
        **{f"{name}_ms": statistics.median(window[name] for window in windows) for name in agents},
        "ratio": statistics.median(window["this"] / window[revision] for window in windows),
    }


def main(arguments: list[str], compare: Callable[[dict[str, float], float], bool]) -> None:
    """Print all figures next to those of the named revision."""
    if len(arguments) != 1:
        sys.exit("name the revision to measure beside, such as: beside HEAD~10")
    for figure in _KINDS:
        print(f"processor time of a {figure}, {RUNS_A_SECOND[figure]} a second, same servers:", flush=True)
        compare(measure(arguments[0], figure), GOAL)
