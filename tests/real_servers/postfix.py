"""A Postfix for tests: it accepts mail for example.test and delivers it by LMTP."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
from pathlib import Path

from tests.real_servers.dovecot import DOMAIN, Dovecot, TlsFiles
from tests.real_servers.greylist import Greylist
from tests.real_servers.process import Daemon, free_port, require, wait_until
from tests.real_servers.relay import Relay

REJECTED = f"nobody-here@{DOMAIN}"
"""An address that gets 550 5.1.1 at RCPT."""

DEFERRED = f"deferred@{DOMAIN}"
"""An address that gets 450 4.2.0 at RCPT."""

GONE = f"gone@{DOMAIN}"
"""An address that Postfix takes and Dovecot refuses: mail to it bounces with 5.1.1."""

_DIRECTORIES = (
    "active bounce corrupt defer deferred flush hold incoming maildrop pid private public saved trace"
)


_RETRYING = "minimal_backoff_time = 1s", "maximal_backoff_time = 2s", "queue_run_delay = 1s"
# To try hundreds of messages anew each second would leave no processor time for anything else.
_HOLDING = "minimal_backoff_time = 1h", "maximal_backoff_time = 1h", "queue_run_delay = 1h"


class Postfix:
    """Ports: smtp (as port 25), submission (STARTTLS and AUTH), submissions (implicit TLS and AUTH).

    Mail goes to Dovecot, or to a ``relay`` in front of it. The smtp port is that of an MX: it accepts mail
    from this machine, with or without STARTTLS, and asks the ``greylist`` if there is one.
    """

    def __init__(
        self,
        directory: Path,
        dovecot: Dovecot,
        tls: TlsFiles,
        *,
        relay: Relay | None = None,
        greylist: Greylist | None = None,
    ) -> None:
        require("postfix", "postfix")
        self._master = Path("/usr/lib/postfix/sbin/master")
        self.directory = directory
        self.smtp_port, self.submission_port, self.submissions_port = (free_port() for _ in range(3))
        self.log = directory / "mail.log"
        self._make_directories()
        (directory / "config" / "main.cf").write_text(
            self._main(dovecot, tls, (relay.port if relay else dovecot.lmtp_port), greylist)
        )
        (directory / "config" / "master.cf").write_text(self._services())
        (directory / "config" / "recipients").write_text(
            "".join(f"{user}@{DOMAIN} x\n" for user in dovecot.users) + f"{DEFERRED} x\n{GONE} x\n"
        )
        (directory / "config" / "restricted").write_text(f"{DEFERRED} 450 4.2.0 mailbox is busy\n")
        ports = (self.smtp_port, self.submission_port, self.submissions_port)
        self._start = lambda: Daemon(
            [self._master, "-d", "-c", directory / "config"], directory / "master.log", ports=ports
        )
        self._daemon = self._start()

    def _make_directories(self) -> None:
        postfix = pwd.getpwnam("postfix")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        (self.directory / "config").mkdir()
        (self.directory / "data").mkdir()
        os.chown(self.directory / "data", postfix.pw_uid, postfix.pw_gid)
        (self.directory / "queue").mkdir()
        for name in _DIRECTORIES.split():
            (self.directory / "queue" / name).mkdir()
            if name != "pid":
                os.chown(self.directory / "queue" / name, postfix.pw_uid, -1)

    def _main(self, dovecot: Dovecot, tls: TlsFiles, lmtp_port: int, greylist: Greylist | None) -> str:
        config = self.directory / "config"
        retrying = "\n".join(_RETRYING)
        policy = f"check_policy_service inet:127.0.0.1:{greylist.port}," if greylist else ""
        return f"""
compatibility_level = 3.6
queue_directory = {self.directory}/queue
data_directory = {self.directory}/data
maillog_file = {self.log}
maillog_file_prefixes = {self.directory}
myhostname = mail.{DOMAIN}
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = {DOMAIN}
virtual_mailbox_maps = texthash:{config}/recipients
virtual_transport = lmtp:inet:127.0.0.1:{lmtp_port}
smtpd_recipient_restrictions = check_recipient_access texthash:{config}/restricted, reject_unlisted_recipient,
    permit_mynetworks, reject
mx_restrictions = check_recipient_access texthash:{config}/restricted, reject_unlisted_recipient, {policy}
    permit_mynetworks, reject
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_tls_cert_file = {tls.certificate}
smtpd_tls_key_file = {tls.key}
smtpd_tls_security_level = may
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{dovecot.auth_port}
smtpd_peername_lookup = no
smtpd_client_connection_rate_limit = 0
smtpd_client_connection_count_limit = 0
smtpd_error_sleep_time = 0
message_size_limit = 60000000
virtual_mailbox_limit = 0
{retrying}
disable_dns_lookups = yes
alias_maps =
alias_database =
"""

    def _services(self) -> str:
        secure = (
            "-o smtpd_sasl_auth_enable=yes -o smtpd_tls_auth_only=yes "
            "-o smtpd_client_restrictions=permit_sasl_authenticated,reject"
        )
        return f"""
postlog   unix-dgram n - n - 1 postlogd
127.0.0.1:{self.smtp_port} inet n - n - - smtpd -o smtpd_recipient_restrictions=$mx_restrictions
127.0.0.1:{self.submission_port} inet n - n - - smtpd -o smtpd_tls_security_level=encrypt {secure}
127.0.0.1:{self.submissions_port} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes {secure}
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 1 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
smtp      unix - - n - - smtp
relay     unix - - n - - smtp
showq     unix n - n - - showq
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
lmtp      unix - - n - - lmtp
anvil     unix - - n - 1 anvil
tlsmgr    unix - - n 1000? 1 tlsmgr
scache    unix - - n - 1 scache
"""

    def log_lines(self) -> list[str]:
        """Return the lines of the mail log so far."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def hold(self) -> None:
        """Keep mail in the queue from now on."""
        self._set("defer_transports = lmtp", *_HOLDING)

    def release(self) -> None:
        """Deliver the queue to Dovecot again, at once."""
        self._set("defer_transports =", *_RETRYING)
        subprocess.run(["/usr/sbin/postqueue", "-c", self.directory / "config", "-f"], check=True)

    def queue_ids(self) -> list[str]:
        """Return the ids of the messages in the queue."""
        queue = self.directory / "queue"
        found = [
            path for name in ("active", "deferred", "incoming", "hold") for path in (queue / name).rglob("*")
        ]
        return [path.name for path in found if path.is_file() and re.fullmatch("[0-9A-Za-z]+", path.name)]

    def _set(self, *settings: str) -> None:
        subprocess.run(["/usr/sbin/postconf", "-c", self.directory / "config", "-e", *settings], check=True)
        # If it is stopped while it is starting, Postfix waits a minute before the next.
        wait_until(lambda: self._queue_manager() is not None, "Postfix has a queue manager", log=self.log)
        before = self._queue_manager()
        self._daemon.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: self._queue_manager() not in (None, before),
            "Postfix has a new queue manager",
            log=self.log,
        )

    def _queue_manager(self) -> int | None:
        """Return the process id of the queue manager, which must learn of the change."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, name, _, parent = path.read_text().split()[:4]
            except OSError:  # it has ended since the listing
                continue
            if name == "(qmgr)" and int(parent) == self._daemon.process.pid:
                return int(pid)
        return None

    def restart(self) -> None:
        """Start again after `stop`, with the same ports and queue."""
        self._daemon = self._start()

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
