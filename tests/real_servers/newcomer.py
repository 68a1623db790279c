"""A new user of `mailsonde init`, with test servers: Postfix, Dovecot and BIND."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.real_servers.bind import Named
from tests.real_servers.dovecot import DOMAIN, Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.site import MAILSONDE

ADDRESS = Dovecot.address
PASSWORD = Dovecot.password
ANSWERS = f"{ADDRESS}\ny\n{PASSWORD}\nfile\ny\n"
"""What is typed by who agrees to everything."""
QUESTION = re.compile(r"(?:\?|account for mailsonde|Password|Login name)(?: \([^)]*\))?(?: \[[^\]]*\])*: ")


def zones(postfix: Postfix, imap: Dovecot, pop3: Dovecot) -> dict[str, str]:
    """Return the DNS of the mail domain, with records for its servers (RFC 6186)."""
    records = (
        "@ MX 10 localhost.",
        f"_submission._tcp SRV 0 1 {postfix.submission_port} localhost.",
        f"_imaps._tcp SRV 0 1 {imap.imaps_port} localhost.",
        f"_pop3s._tcp SRV 0 1 {pop3.pop3s_port} localhost.",
    )
    return {DOMAIN: "\n".join(records) + "\n"}


EXCHANGE_ONLINE = {DOMAIN: "@ MX 10 example-test.mail.protection.outlook.com.\n"}
"""The DNS of the mail domain when its mail is at Exchange Online."""

BEHIND_A_FILTER = {
    DOMAIN: "@ MX 10 mx.filter.test.\nautodiscover CNAME autodiscover.outlook.com.\n",
    "outlook.com": "autodiscover A 127.0.0.1\n",
}
"""The same with another provider's filter before it; only the alias for Outlook shows it."""


class Place:
    """A directory to run the command in, and the options for this test's servers."""

    def __init__(
        self, directory: Path, named: Named, tls: TlsFiles, postfix: Postfix, dovecot: Dovecot
    ) -> None:
        self.directory = directory
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.work = directory / "work"
        self.work.mkdir()
        self.config = self.work / "mailsonde.yaml"
        self.postfix, self.dovecot = postfix, dovecot
        self.guided = ("--resolver", f"127.0.0.1:{named.port}", "--tls-ca", str(tls.authority))
        self.environment = {**os.environ, "TMPDIR": str(self.temporary)}

    def run(self, *arguments: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, with these lines as input."""
        return subprocess.run(
            [*MAILSONDE, "init", *self.guided, *arguments],
            cwd=self.work,
            input=typed,
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,  # without a terminal, which would be asked for the password
            env={**self.environment, **environment},
        )

    @property
    def named_servers(self) -> tuple[str, ...]:
        """The options of a user who names every server."""
        return (
            *("--smtp", f"localhost:{self.postfix.submission_port}"),
            *("--mailbox", f"imaps://localhost:{self.dovecot.imaps_port}"),
        )

    def require_nothing_left(self) -> None:
        """Require that there is no configuration, password or temporary ledger."""
        assert list(self.work.iterdir()) == []
        assert list(self.temporary.iterdir()) == []
