"""A Sendmail for tests: it accepts mail for example.test and delivers it by LMTP."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from tests.real_servers.dovecot import DOMAIN, PASSWORD, USERS, TlsFiles
from tests.real_servers.process import Daemon, free_port
from tests.real_servers.unpacked import Unpacked

UNKNOWN = f"nobody-here@{DOMAIN}"
"""An address that gets 550 5.1.1 at RCPT."""


class Sendmail:
    """Port: submission, with STARTTLS and AUTH.

    Mail goes to the LMTP server on ``lmtp_port``.
    """

    def __init__(self, directory: Path, tls: TlsFiles, lmtp_port: int) -> None:
        files = Unpacked("sendmail", directory, {"smmta": 64108, "smmsp": 64109})
        self.submission_port = free_port()
        self.log = directory / "sendmail.log"
        (directory / "queue").mkdir(mode=0o700)
        logins = directory / "sasldb2"
        for user in USERS:
            add = files.command("saslpasswd2", "-p", "-c", "-f", logins, "-u", DOMAIN, user)
            subprocess.run(add, input=PASSWORD, text=True, check=True)
        for folder in ("mail", "sasl2"):
            (files.etc / folder).mkdir()
        (files.etc / "sasl2" / "Sendmail.conf").write_text(
            f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {logins}\n"
            "mech_list: PLAIN LOGIN CRAM-MD5\n"
        )
        # Sendmail refuses keys in a folder where others may write.
        for file in (tls.key, tls.certificate, tls.authority):
            shutil.copy(file, files.etc / "mail")
            (files.etc / "mail" / file.name).chmod(0o400)
        # Sendmail waits for minutes if this machine's name has no domain.
        (files.etc / "hosts").write_text(
            f"127.0.0.1 localhost\n127.0.0.1 mail.{DOMAIN} {socket.gethostname()}\n"
        )
        (files.etc / "mail" / "service.switch").write_text("hosts files\naliases files\n")
        macros = directory / "sendmail.mc"
        macros.write_text(self._macros(directory, tls, lmtp_port))
        with (files.etc / "mail" / "sendmail.cf").open("w") as config:
            subprocess.run(files.command("m4", macros), stdout=config, check=True)
        command = files.command("/usr/libexec/sendmail/sendmail", "-bD")
        self._daemon = Daemon(command, self.log, ports=[self.submission_port])

    def _macros(self, directory: Path, tls: TlsFiles, lmtp_port: int) -> str:
        return f"""\
divert(-1)
define(`_USE_ETC_MAIL_')
include(`/usr/share/sendmail/cf/m4/cf.m4')
divert(0)dnl
OSTYPE(`debian')dnl
define(`QUEUE_DIR', `{directory}/queue')dnl
define(`STATUS_FILE', `{directory}/statistics')dnl
define(`confHOST_STATUS_DIRECTORY', `')dnl
define(`confPID_FILE', `{directory}/pid')dnl
define(`confDOMAIN_NAME', `mail.{DOMAIN}')dnl
define(`confSERVICE_SWITCH_FILE', `/etc/mail/service.switch')dnl
define(`ALIAS_FILE', `')dnl
define(`confTO_IDENT', `0')dnl
define(`confDELIVERY_MODE', `background')dnl
dnl # On a busy machine it would only queue mail, or refuse connections.
define(`confQUEUE_LA', `1000')dnl
define(`confREFUSE_LA', `1000')dnl
define(`confCACERT', `/etc/mail/{tls.authority.name}')dnl
define(`confCACERT_PATH', `/etc/mail')dnl
define(`confSERVER_CERT', `/etc/mail/{tls.certificate.name}')dnl
define(`confSERVER_KEY', `/etc/mail/{tls.key.name}')dnl
define(`confAUTH_OPTIONS', `A p y')dnl
define(`confAUTH_MECHANISMS', `PLAIN LOGIN CRAM-MD5')dnl
TRUST_AUTH_MECH(`PLAIN LOGIN CRAM-MD5')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
DAEMON_OPTIONS(`Name=MSA, Addr=127.0.0.1, Port={self.submission_port}, M=a')dnl
RELAY_DOMAIN(`{DOMAIN}')dnl
MAILER(`smtp')dnl
LOCAL_RULE_0
Rnobody-here < @ {DOMAIN} . >\t$#error $@ 5.1.1 $: "550 User unknown"
R$+ < @ {DOMAIN} . >\t$#lmtp $@ 127.0.0.1 $: $1 < @ {DOMAIN} . >
MAILER_DEFINITIONS
Mlmtp, P=[IPC], F=lsDFMnqXzmk, S=EnvFromSMTP/HdrFromSMTP, R=EnvToSMTP/HdrFromSMTP, E=\\r\\n,
\tT=DNS/RFC822/SMTP, A=TCP $h {lmtp_port}
"""

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
