"""A Cyrus for tests: POP3 and IMAP, and LMTP to fill its mailboxes."""

from __future__ import annotations

import imaplib
import os
import shutil
import ssl
import subprocess
from pathlib import Path

from tests.real_servers.dovecot import DOMAIN, PASSWORD, USERS, TlsFiles
from tests.real_servers.process import Daemon, free_port
from tests.real_servers.unpacked import Unpacked

_CYRUS = 64107  # its user's number, not used by the system


class Cyrus:
    """Ports: pop3 (STLS), imaps (implicit TLS) and lmtp.

    There are mailboxes for `USERS`, each with a junk folder, and one for ``full``, which accepts no message.
    """

    def __init__(self, directory: Path, tls: TlsFiles) -> None:
        files = Unpacked("cyrus", directory, {"cyrus": _CYRUS, "mail": _CYRUS})
        self.pop3_port, self.imaps_port, self.lmtp_port = ports = free_port(), free_port(), free_port()
        self.log = directory / "cyrus.log"
        state = directory / "state"
        for name in ("", "mail", "run", "lock", "proc", "socket"):
            (state / name).mkdir()
        shutil.copy(tls.key, state / "server.key")
        logins = state / "sasldb2"
        for user in (*USERS, "admin"):
            add = files.command("saslpasswd2", "-p", "-c", "-f", logins, "-u", DOMAIN, user)
            subprocess.run(add, input=PASSWORD, text=True, check=True)
        for path in (state, *state.iterdir()):  # Cyrus runs as its own user
            os.chown(path, _CYRUS, _CYRUS)
        (files.etc / "imapd.conf").write_text(self._settings(state, logins, tls))
        (files.etc / "cyrus.conf").write_text(self._services())
        self._daemon = Daemon(files.command("cyrmaster"), self.log, ports=ports)
        try:
            self._make_mailboxes(tls.authority)
        except BaseException:
            self.stop()
            raise

    def _settings(self, state: Path, logins: Path, tls: TlsFiles) -> str:
        return f"""
configdirectory: {state}
partition-default: {state}/mail
proc_path: {state}/proc
mboxname_lockpath: {state}/lock
lmtpsocket: {state}/socket/lmtp
idlesocket: {state}/socket/idle
notifysocket: {state}/socket/notify
admins: admin@{DOMAIN}
servername: mail.{DOMAIN}
defaultdomain: default.invalid
virtdomains: userid
unixhierarchysep: yes
lmtp_over_quota_perm_failure: yes
lmtp_strict_quota: yes
allowplaintext: no
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {logins}
sasl_mech_list: PLAIN LOGIN CRAM-MD5 NTLM
tls_server_cert: {tls.certificate}
tls_server_key: {state}/server.key
"""

    def _services(self) -> str:
        return f"""
START {{
  recover cmd="ctl_cyrusdb -r"
}}
SERVICES {{
  pop3 cmd="pop3d" listen="127.0.0.1:{self.pop3_port}" prefork=0
  imaps cmd="imapd -s" listen="127.0.0.1:{self.imaps_port}" prefork=0
  lmtp cmd="lmtpd -a" listen="127.0.0.1:{self.lmtp_port}" prefork=0
}}
EVENTS {{
}}
"""

    def _make_mailboxes(self, authority: Path) -> None:
        """Make those of `USERS`, and one with no room for any message.

        Only that one has a quota root. Where users have one, even without a limit, Cyrus 3.6 at times refuses
        all their mail as over quota: after one start in six, in 1,000 starts.
        """
        context = ssl.create_default_context(cafile=authority)

        def logged_in(user: str) -> imaplib.IMAP4_SSL:
            session = imaplib.IMAP4_SSL("127.0.0.1", self.imaps_port, ssl_context=context)
            session.login(f"{user}@{DOMAIN}", PASSWORD)
            return session

        with logged_in("admin") as session:
            for user in (*USERS, "full"):
                session.create(f"user/{user}@{DOMAIN}")
            session.setquota(f"user/full@{DOMAIN}", "(STORAGE 0)")
        for user in USERS:
            with logged_in(user) as session:
                session.xatom("CREATE", "Junk", r"(USE (\Junk))")

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
