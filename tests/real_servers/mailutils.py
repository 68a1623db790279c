"""The POP3 and IMAP servers of GNU Mailutils for tests, with maildirs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.real_servers.dovecot import DOMAIN, PASSWORD, USERS, TlsFiles
from tests.real_servers.maildirs import OWNER, Maildirs
from tests.real_servers.process import Daemon, free_port
from tests.real_servers.unpacked import Unpacked


class Mailutils:
    """Ports: pop3 (STLS) and imaps (implicit TLS). Its users are `USERS`, each with one of ``maildirs``.

    POP3 allows one session at a time for a mailbox.
    """

    def __init__(self, directory: Path, tls: TlsFiles, maildirs: Maildirs) -> None:
        files = Unpacked("mailutils", directory, {"mailboxes": OWNER})
        self.pop3_port, self.imaps_port = free_port(), free_port()
        self._write_accounts(directory / "accounts", maildirs.directory)
        common = self._settings(directory, tls)
        self._daemons: list[Daemon] = []
        locks = directory / "locks"
        locks.mkdir()
        os.chown(locks, OWNER, OWNER)
        for program, port, how, more in (
            ("pop3d", self.pop3_port, "ondemand", f"mandatory-locking {{ lock-directory {locks}; }};"),
            ("imap4d", self.imaps_port, "connection", ""),
        ):
            config = directory / f"{program}.conf"
            config.write_text(f"{common}server 127.0.0.1:{port} {{ tls-mode {how}; }};\n{more}\n")
            command = files.command(program, "--foreground", "--daemon", f"--config-file={config}")
            self._daemons.append(Daemon(command, directory / f"{program}.log", ports=[port]))

    def _write_accounts(self, directory: Path, mail: Path) -> None:
        """Write the accounts, each with a home where INBOX is the maildir."""
        directory.mkdir()
        encrypt = ["openssl", "passwd", "-5", PASSWORD]
        secret = subprocess.run(encrypt, check=True, capture_output=True, text=True).stdout.strip()
        lines = []
        for user in USERS:
            home = directory / user
            home.mkdir()
            (home / "INBOX").symlink_to(mail / user)
            os.chown(home, OWNER, OWNER)
            lines.append(f"{user}:{secret}:{OWNER}:{OWNER}::{home}:/bin/sh\n")
        (directory / DOMAIN).write_text("".join(lines))

    def _settings(self, directory: Path, tls: TlsFiles) -> str:
        return f"""
virtdomain {{ passwd-dir {directory}/accounts; }};
mailbox {{ mailbox-type maildir; }};
tcp-wrappers {{ enable no; }};
logging {{ syslog no; }};
tls-file-checks {{ key-file none; cert-file none; ca-file none; }};
tls {{
  ssl-certificate-file {tls.certificate};
  ssl-key-file {tls.key};
}};
"""

    def stop(self) -> None:
        """End both servers."""
        for daemon in self._daemons:
            daemon.stop()
