"""An OpenSMTPD for tests: it accepts mail for example.test and delivers it by LMTP."""

from __future__ import annotations

from pathlib import Path

from tests.real_servers.dovecot import DOMAIN, USERS
from tests.real_servers.process import Daemon, free_port
from tests.real_servers.unpacked import Unpacked

UNKNOWN = f"nobody-here@{DOMAIN}"
"""An address that gets 550 at RCPT."""

_ACCOUNTS = {"opensmtpd": 64103, "opensmtpq": 64104}  # not used by the system


class OpenSmtpd:
    """Port: smtp, without TLS and AUTH, because OpenSMTPD 6.8 cannot use its key with OpenSSL 3.

    Mail for `USERS` goes to the LMTP server on ``lmtp_port``, as does mail for ``gone`` and ``full``, whom
    that server may refuse. Mail for ``forwarded`` goes to a server that is down.
    """

    def __init__(self, directory: Path, lmtp_port: int) -> None:
        files = Unpacked("opensmtpd", directory, _ACCOUNTS)
        self.smtp_port = free_port()
        self.log = directory / "opensmtpd.log"
        config = files.etc / "smtpd.conf"
        config.write_text(self._config(lmtp_port, free_port()))
        config.chmod(0o600)
        self._daemon = Daemon(files.command("smtpd", "-d"), self.log, ports=[self.smtp_port])

    def _config(self, lmtp_port: int, closed_port: int) -> str:
        recipients = ", ".join(f'"{user}@{DOMAIN}"' for user in (*USERS, "gone", "full"))
        return f"""
table recipients {{ {recipients} }}
listen on 127.0.0.1 port {self.smtp_port} hostname mail.{DOMAIN}
action "mailboxes" relay host "lmtp://127.0.0.1:{lmtp_port}"
action "onward" relay host "smtp://127.0.0.2:{closed_port}" ttl 1s
match from any for rcpt-to "forwarded@{DOMAIN}" action "onward"
match from any for rcpt-to <recipients> action "mailboxes"
"""

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
