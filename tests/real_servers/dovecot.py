"""A Dovecot for tests: POP3, IMAP, LMTP, and authentication for Postfix."""

from __future__ import annotations

import os
import pwd
import re
import smtplib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.real_servers.process import Daemon, free_port, require

DOMAIN = "example.test"
PASSWORD = "canary-Pa55word"
USERS = ("canary", "staff", "sender")

_NAMESPACE = """
namespace inbox {
  inbox = yes
  mailbox Junk {
    auto = subscribe
    special_use = \\Junk
  }
}
"""
_SAVED = re.compile(r"^(\S+) lmtp\([^\n]*?: Info: msgid=(<[^\n]*>): saved mail to ", re.MULTILINE)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: a certificate for localhost and 127.0.0.1, its key, and its authority."""

    certificate: Path
    key: Path
    authority: Path


class Dovecot:
    """The ``users`` of example.test, all with `PASSWORD`; all files are in ``directory``.

    ``extra`` is added to the configuration; a namespace in it replaces ours, which has the folder Junk.
    """

    address = f"canary@{DOMAIN}"
    username = f"canary@{DOMAIN}"
    password = PASSWORD

    def __init__(
        self, directory: Path, tls: TlsFiles, *, extra: str = "", users: tuple[str, ...] = USERS
    ) -> None:
        self.users = users
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
        self._filed = 0
        owner = self._owner = pwd.getpwnam("nobody")
        os.chown(self._mail, owner.pw_uid, owner.pw_gid)
        accounts = directory / "users"
        accounts.write_text("".join(f"{name}@{DOMAIN}:{{PLAIN}}{PASSWORD}::::::\n" for name in users))
        accounts.chmod(0o644)
        config = directory / "dovecot.conf"
        namespace = "" if "namespace inbox" in extra else _NAMESPACE
        config.write_text(self._config(tls, accounts, owner.pw_uid, owner.pw_gid) + namespace + extra)
        ports = (self.pop3_port, self.pop3s_port, self.imap_port, self.lmtp_port, self.auth_port)
        self._start = lambda: Daemon([program, "-F", "-c", config], directory / "dovecot.log", ports=ports)
        self._daemon = self._start()

    def _config(self, tls: TlsFiles, users: Path, uid: int, gid: int) -> str:
        return f"""
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = {self.directory}/dovecot.log
log_timestamp = "%Y-%m-%dT%H:%M:%S.%{{usecs}}%z "
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
recipient_delimiter = +
lmtp_save_to_detail_mailbox = yes
lda_mailbox_autocreate = yes
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
        """Put a message into a user's mailbox by LMTP."""
        with smtplib.LMTP("127.0.0.1", self.lmtp_port) as lmtp:
            lmtp.sendmail(f"test@{DOMAIN}", f"{user}@{DOMAIN}", raw)

    def deliver_many(self, count: int, make: Callable[[int], bytes], user: str = "canary") -> None:
        """Put the messages ``make(0)``, ``make(1)`` … into a user's mailbox as files, faster than LMTP."""
        maildir = self._mail / f"{user}@{DOMAIN}"
        for directory in (maildir, *(maildir / name for name in ("cur", "new", "tmp"))):
            if not directory.exists():
                directory.mkdir()
                os.chown(directory, self._owner.pw_uid, self._owner.pw_gid)
        for _ in range(count):
            raw = make(self._filed).replace(b"\r\n", b"\n")
            # With sizes in the names, Dovecot need not read every file for POP3's STAT.
            size, lines = len(raw), raw.count(b"\n")
            name = f"1.Q{self._filed}.filed,S={size},W={size + lines}"
            (maildir / "tmp" / name).write_bytes(raw)
            os.chown(maildir / "tmp" / name, self._owner.pw_uid, self._owner.pw_gid)
            (maildir / "tmp" / name).rename(maildir / "new" / name)
            self._filed += 1

    def messages(self, user: str = "canary", folder: str = "INBOX") -> list[bytes]:
        """Return the messages in a folder of a user's mailbox."""
        maildir = self._mail / f"{user}@{DOMAIN}" / ("" if folder == "INBOX" else f".{folder}")
        found = []
        for path in [*maildir.glob("new/*"), *maildir.glob("cur/*")]:
            with suppress(FileNotFoundError):  # deleted meanwhile
                found.append(path.read_bytes())
        return found

    def saved_at(self) -> dict[str, float]:
        """Return Message-ID → unix seconds, to the microsecond, when Dovecot first logged saving it.

        It logs this after the message can be read: 0.4 ms later on an idle machine, 50 ms on a busy one.
        """
        log = (self.directory / "dovecot.log").read_text(errors="replace")
        # From the end, so that the first time remains for a message saved twice.
        return {
            message_id: datetime.fromisoformat(when).timestamp()
            for when, message_id in reversed(_SAVED.findall(log))
        }

    def restart(self) -> None:
        """Start again after `stop`, with the same ports and mail."""
        self._daemon = self._start()

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
