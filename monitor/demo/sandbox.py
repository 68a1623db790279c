"""A real mail server for one machine: ``python -m monitor.demo.sandbox --directory DIR``.

Accepts mail for one account by SMTP submission, delivers it after a varying delay, loses some of it, and
serves it by POP3. Listens on 127.0.0.1 only, and then prints its ports as one line of JSON. Exits when
its standard input closes, or on SIGTERM. Needs the extra ``demo``.
"""
# mypy: allow-untyped-calls
# (PrivateCertificate has no annotations.)

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

try:
    import trustme
    from twisted.internet import reactor as installed_reactor
    from twisted.internet.protocol import Protocol
    from twisted.internet.ssl import CertificateOptions, PrivateCertificate
    from twisted.protocols.policies import LimitTotalConnectionsFactory

    from monitor.demo.sandbox_protocols import Account, SandboxPOP3, SandboxSMTP
except ImportError as missing:
    sys.exit(f"the sandbox mail server needs more libraries: pip install 'mailsonde[demo]' ({missing})")

from monitor.demo.sandbox_mail import PostOffice, Transit

LOOPBACK = "127.0.0.1"
CANARY_ADDRESS = "canary@sandbox.test"
CONNECTIONS_LIMIT = 50
"""Maximum concurrent connections per port; further ones are closed at once."""


class _Listener(LimitTotalConnectionsFactory):
    connectionLimit: Any = CONNECTIONS_LIMIT  # noqa: N815 - Twisted's name, inferred there as None
    noisy = False


reactor: Any = installed_reactor  # its static type lacks what the platform's reactor provides


def main() -> None:
    """Serve until standard input closes; the exit code is then 0."""
    # Ctrl-C goes to the whole foreground process group; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments = _arguments()
    transit = Transit(
        Random(arguments.seed),  # noqa: S311 - for delays, not for security
        loss=arguments.loss,
        shortest=arguments.delay_min,
        longest=arguments.delay_max,
        slowest=arguments.slow_max,
    )
    office = PostOffice(transit, reactor.callLater)
    account = Account(CANARY_ADDRESS, secrets.token_urlsafe(24))
    password_file = _write_password(arguments.directory, account.password)
    ca_file, tls = _make_tls(arguments.directory)
    announcement = {
        "smtp_port": _listen(partial(SandboxSMTP, account, office, tls)),
        "pop3_port": _listen(partial(SandboxPOP3, account, office, tls)),
        "ca_file": str(ca_file),
        "address": account.address,
        "username": account.address,
        "password_file": str(password_file),
    }
    Thread(target=_stop_at_end_of_input, daemon=True).start()
    reactor.callWhenRunning(print, json.dumps(announcement), flush=True)
    reactor.run()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m monitor.demo.sandbox", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="directory for the CA and the password")
    parser.add_argument("--seed", type=int, help="seed that makes delays and losses repeatable")
    parser.add_argument(
        "--loss", type=float, default=0.04, help=("probability, 0 to 1, that a message is lost")
    )
    parser.add_argument("--delay-min", type=float, default=0.05, help="shortest transit, seconds")
    parser.add_argument("--delay-max", type=float, default=3.0, help="longest usual transit, seconds")
    parser.add_argument(
        "--slow-max", type=float, default=8.0, help="longest transit in a slow period, seconds"
    )
    return parser.parse_args()


def _write_password(directory: Path, password: str) -> Path:
    path = directory.absolute() / "sandbox-password"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(password)
    return path


def _make_tls(directory: Path) -> tuple[Path, CertificateOptions]:
    """Create a CA and a certificate for this run only; only the CA's certificate leaves the process."""
    ca = trustme.CA()
    ca_file = directory.absolute() / "sandbox-ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    leaf = ca.issue_cert(LOOPBACK, "localhost", "sandbox.test")
    return ca_file, PrivateCertificate.loadPEM(leaf.private_key_and_cert_chain_pem.bytes()).options()


def _listen(build: Callable[[], Protocol]) -> int:
    factory = _Listener()
    factory.protocol = build
    port: int = reactor.listenTCP(0, factory, interface=LOOPBACK).getHost().port
    return port


def _stop_at_end_of_input() -> None:
    # Read the descriptor directly: this thread would still hold the lock of Python's buffer at SIGTERM.
    while os.read(0, 4096):
        pass
    reactor.callFromThread(reactor.stop)


if __name__ == "__main__":
    main()
