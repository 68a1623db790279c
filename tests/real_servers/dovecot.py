"""A Dovecot of the test's own: POP3, IMAP, LMTP and authentication for Postfix."""

from __future__ import annotations

import os
import pwd
import smtplib
from dataclasses import dataclass
from pathlib import Path

from tests.real_servers.process import Daemon, free_port, require

DOMAIN = "example.test"
PASSWORD = "canary-Pa55word"


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a certificate for localhost and 127.0.0.1, its key, and the authority behind it."""

    certificate: Path
    key: Path
    authority: Path


class Dovecot:
    """Users canary@ and staff@example.test, both with `PASSWORD`; everything under ``directory``."""

    address = f"canary@{DOMAIN}"
    username = f"canary@{DOMAIN}"
    password = PASSWORD

    def __init__(self, directory: Path, tls: TlsFiles, *, extra: str = "") -> None:
        program = require("dovecot", "dovecot-core")
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        self.pop3_port, self.pop3s_port, self.imap_port, self.imaps_port, self.lmtp_port = (
            free_port() for _ in range(5)
        )
        self.auth_port = free_port()
        self._mail = directory / "mail"
        self._mail.mkdir(exist_ok=True)
        owner = pwd.getpwnam("nobody")
        os.chown(self._mail, owner.pw_uid, owner.pw_gid)
        users = directory / "users"
        users.write_text(
            "".join(f"{name}@{DOMAIN}:{{PLAIN}}{PASSWORD}::::::\n" for name in ("canary", "staff"))
        )
        users.chmod(0o644)
        config = directory / "dovecot.conf"
        config.write_text(self._config(tls, users, owner.pw_uid, owner.pw_gid) + extra)
        ports = (self.pop3_port, self.pop3s_port, self.imap_port, self.lmtp_port, self.auth_port)
        self._daemon = Daemon([program, "-F", "-c", config], directory / "dovecot.log", ports=ports)

    def _config(self, tls: TlsFiles, users: Path, uid: int, gid: int) -> str:
        return f"""
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = {self.directory}/dovecot.log
protocols = pop3 imap lmtp
listen = 127.0.0.1
ssl = yes
ssl_cert = <{tls.certificate}
ssl_key = <{tls.key}
disable_plaintext_auth = yes
auth_mechanisms = plain login cram-md5 apop
auth_failure_delay = 0 secs
login_trusted_networks =
first_valid_uid = 1
mail_location = maildir:{self._mail}/%u
mail_fsync = never
passdb {{
  driver = passwd-file
  args = {users}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={self._mail}/%u
}}
service pop3-login {{
  service_count = 0
  inet_listener pop3 {{
    address = 127.0.0.1
    port = {self.pop3_port}
  }}
  inet_listener pop3s {{
    address = 127.0.0.1
    port = {self.pop3s_port}
    ssl = yes
  }}
}}
service imap-login {{
  service_count = 0
  inet_listener imap {{
    address = 127.0.0.1
    port = {self.imap_port}
  }}
  inet_listener imaps {{
    address = 127.0.0.1
    port = {self.imaps_port}
    ssl = yes
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {self.lmtp_port}
  }}
}}
service auth {{
  inet_listener {{
    address = 127.0.0.1
    port = {self.auth_port}
  }}
}}
# Without it, a refused login makes later ones from the same address wait for seconds.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  client_limit = 1000
}}
protocol lmtp {{
  auth_username_format = %Lu
}}
"""

    def deliver(self, raw: bytes, user: str = "canary") -> None:
        """Put a message into a user's mailbox, by LMTP."""
        with smtplib.LMTP("127.0.0.1", self.lmtp_port) as lmtp:
            lmtp.sendmail(f"test@{DOMAIN}", f"{user}@{DOMAIN}", raw)

    def messages(self, user: str = "canary") -> list[bytes]:
        """Return the messages that a user's mailbox holds."""
        found = [*self._mail.glob(f"{user}@{DOMAIN}/new/*"), *self._mail.glob(f"{user}@{DOMAIN}/cur/*")]
        return [path.read_bytes() for path in found]

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
