"""An Exim for tests: it accepts mail for example.test and delivers it into maildirs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.real_servers.dovecot import DOMAIN, PASSWORD, USERS, TlsFiles
from tests.real_servers.maildirs import OWNER, Maildirs
from tests.real_servers.process import Daemon, free_port
from tests.real_servers.unpacked import Unpacked

DEFERRED = f"deferred@{DOMAIN}"
"""An address that gets 451 at RCPT."""

UNKNOWN = f"nobody-here@{DOMAIN}"
"""An address that gets 550 at RCPT."""


class Exim:
    """Ports: submission (STARTTLS and AUTH) and submissions (implicit TLS and AUTH).

    Mail for `USERS` goes into ``maildirs``. Exim also accepts mail for ``gone``, for whom it has no route,
    for ``full``, with a quota too small for any message, and for ``forwarded``, which it sends to a server
    that is down.
    """

    def __init__(self, directory: Path, tls: TlsFiles, maildirs: Maildirs) -> None:
        files = Unpacked("exim", directory, {"Debian-exim": OWNER})
        self.submission_port, self.submissions_port = ports = free_port(), free_port()
        self.log = directory / "exim.log"
        spool = directory / "spool"
        spool.mkdir()
        shutil.copy(tls.key, spool / "server.key")
        for path in (spool, spool / "server.key"):  # Exim reads the key as its own user
            os.chown(path, OWNER, OWNER)
        config = files.etc / "exim4" / "exim4.conf"
        config.parent.mkdir()
        config.write_text(self._config(spool, tls, maildirs.directory, free_port()))
        command = files.command("exim4", "-bdf")
        self._daemon = Daemon(command, self.log, ports=ports)

    def _config(self, spool: Path, tls: TlsFiles, mail: Path, closed_port: int) -> str:
        return f"""
primary_hostname = mail.{DOMAIN}
qualify_domain = {DOMAIN}
spool_directory = {spool}
log_file_path = {spool}/%slog
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = {self.submission_port} : {self.submissions_port}
tls_on_connect_ports = {self.submissions_port}
tls_advertise_hosts = *
tls_certificate = {tls.certificate}
tls_privatekey = {spool}/server.key
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
host_lookup =
rfc1413_query_timeout = 0s
dns_ipv4_lookup = *
acl_smtp_rcpt = recipient
acl_smtp_data = accept
smtp_accept_max = 100
never_users = root

begin acl
recipient:
  deny    !authenticated = *
          message = authentication is needed here
  defer   recipients = {DEFERRED}
          message = try again later
  accept  recipients = gone@{DOMAIN}
  require verify = recipient
  accept

begin routers
forwarded:
  driver = manualroute
  local_parts = forwarded
  route_list = * 127.0.0.1::{closed_port}
  self = send
  transport = onward
mailboxes:
  driver = accept
  local_parts = {" : ".join(USERS)} : full
  transport = maildir

begin transports
onward:
  driver = smtp
  allow_localhost
maildir:
  driver = appendfile
  directory = {mail}/$local_part_data
  maildir_format
  user = {OWNER}
  group = {OWNER}
  quota = ${{if eq{{$local_part_data}}{{full}}{{1}}{{0}}}}
  delivery_date_add
  return_path_add

begin retry

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${{if eq{{$auth3}}{{{PASSWORD}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if eq{{$auth2}}{{{PASSWORD}}}}}
  server_set_id = $auth1
"""

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
