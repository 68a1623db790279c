"""A Courier for tests: POP3 and IMAP for maildirs."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
from pathlib import Path

from tests.real_servers.dovecot import DOMAIN, PASSWORD, USERS, TlsFiles
from tests.real_servers.maildirs import OWNER, Maildirs
from tests.real_servers.process import Daemon, free_port, wait_until
from tests.real_servers.unpacked import Unpacked

_COURIER = 64102  # its user's number, not used by the system

# One shell is the parent of all, because they share a namespace, and stops them all.
_SERVE = """
mkdir -p /run/courier/authdaemon
chown courier /run/courier/authdaemon
set -a
. /etc/courier/authdaemonrc
/usr/lib/courier/courier-authlib/authdaemond &
children=$!
echo $! >"$1"
listen() {
  couriertcpd -address=127.0.0.1 -maxprocs=40 -maxperip=40 -nodnslookup -noidentlookup "$@" &
  children="$children $!"
}
listen $POP3_PORT /usr/lib/courier/courier/courierpop3login /usr/lib/courier/courier/courierpop3d .
IMAP_TLS=1
listen $IMAPS_PORT /usr/bin/couriertls -server -tcpd -user=courier \
  /usr/lib/courier/courier/imaplogin /usr/bin/imapd .
trap 'kill $children; wait' TERM
wait
"""


class Courier:
    """Ports: pop3 (STLS) and imaps (implicit TLS). Each of `USERS` has one of ``maildirs``."""

    def __init__(self, directory: Path, tls: TlsFiles, maildirs: Maildirs) -> None:
        self._files = Unpacked("courier", directory, {"courier": _COURIER, "mailboxes": OWNER})
        self._maildirs = maildirs.directory
        self.pop3_port, self.imaps_port = free_port(), free_port()
        self.log = directory / "courier.log"
        config = self._files.etc / "courier"
        config.mkdir()
        certificate = directory / "server.pem"
        certificate.write_text(tls.key.read_text() + tls.certificate.read_text())
        certificate.chmod(0o400)
        os.chown(certificate, _COURIER, _COURIER)
        (config / "authdaemonrc").write_text(self._environment(certificate))
        self._accounts(config / "userdb")
        self._authentication = directory / "authdaemond.pid"
        command = self._files.command("sh", "-c", _SERVE, "sh", self._authentication)
        self._daemon = Daemon(command, self.log, ports=[self.pop3_port, self.imaps_port])

    def _environment(self, certificate: Path) -> str:
        return f"""
POP3_PORT={self.pop3_port}
IMAPS_PORT={self.imaps_port}
authmodulelist=authuserdb
authmodulelistorig=authuserdb
daemons=2
authdaemonvar=/run/courier/authdaemon
DEBUG_LOGIN=0
TLS_CERTFILE={certificate}
COURIERTLS=/usr/bin/couriertls
POP3AUTH="PLAIN LOGIN"
POP3AUTH_TLS="PLAIN LOGIN"
POP3_STARTTLS=YES
POP3_TLS_REQUIRED=1
IMAP_CAPABILITY="IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=REFERENCES SORT QUOTA IDLE AUTH=PLAIN"
IMAP_KEYWORDS=1
IMAP_ACL=1
IMAP_IDLE_TIMEOUT=60
IMAP_USELOCKS=1
IMAP_UMASK=022
MAILDIRPATH=.
"""

    def _accounts(self, accounts: Path) -> None:
        secret = "{SHA256}" + base64.b64encode(hashlib.sha256(PASSWORD.encode()).digest()).decode()
        accounts.write_text(
            "".join(
                f"{user}@{DOMAIN}\tuid={OWNER}|gid={OWNER}|home={self._maildirs}/{user}|"
                f"mail={self._maildirs}/{user}|systempw={secret}\n"
                for user in USERS
            )
        )
        accounts.chmod(0o600)
        subprocess.run(self._files.command("makeuserdb", "-f", accounts), check=True)

    def end_authentication(self) -> None:
        """Stop the daemon that knows the passwords, so that nobody can log in."""
        process = int(self._authentication.read_text())
        os.kill(process, signal.SIGTERM)
        wait_until(lambda: not Path("/proc", str(process)).exists(), "the end of authdaemond", log=self.log)

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
