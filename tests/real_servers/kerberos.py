"""A Kerberos realm for tests: MIT's KDC, and Debian's python3-gssapi, which needs no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.real_servers.dovecot import PASSWORD
from tests.real_servers.process import Daemon, free_port, require

REALM = "FABRIKAM.TEST"
SERVICES = ("HTTP", "imap", "pop", "smtp")
_DEBIAN = Path("/usr/lib/python3/dist-packages")
_MODULES = ("gssapi", "decorator.py")


def put_gssapi_on_the_path(directory: Path, patch: pytest.MonkeyPatch) -> None:
    """Make gssapi importable, and nothing else that Debian has for its own Python."""
    if not (_DEBIAN / "gssapi").exists():
        pytest.fail("gssapi is missing: install Debian's python3-gssapi, or run `make test-servers` as root")
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}-"
    if not any(_DEBIAN.glob(f"gssapi/raw/creds.{tag}*")):
        pytest.skip("Debian's gssapi is for another version of Python")
    for name in _MODULES:
        (directory / name).symlink_to(_DEBIAN / name)
    patch.syspath_prepend(directory)


class Realm:
    """The realm `REALM`: users ``canary`` and ``locked`` with `PASSWORD`, and `SERVICES` on ``localhost``.

    ``keytab`` has the keys of the services. All files are in ``directory``.
    """

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o755)
        self._directory = directory
        self.keytab = directory / "keytab"
        port = free_port()
        self.client_settings = self.settings_for(port)
        (directory / "kdc.conf").write_text(f"""
[kdcdefaults]
  kdc_listen = 127.0.0.1:{port}
  kdc_tcp_listen = 127.0.0.1:{port}
[realms]
  {REALM} = {{
    database_name = {directory}/principal
    key_stash_file = {directory}/stash
    default_principal_flags = +preauth
  }}
""")
        self._run("kdb5_util", "krb5-kdc", "create", "-s", "-P", "master-Pa55word")
        services = [f"{service}/localhost" for service in SERVICES]
        commands = [
            f"addprinc -pw {PASSWORD} canary",
            f"addprinc -pw {PASSWORD} -allow_tix locked",
            *(f"addprinc -randkey {service}" for service in services),
            f"ktadd -k {self.keytab} {' '.join(services)}",
        ]
        for command in commands:
            self._run("kadmin.local", "krb5-admin-server", *command.split())
        self._daemon = Daemon(
            [*self._environment, require("krb5kdc", "krb5-kdc"), "-n", "-r", REALM],
            directory / "kdc.log",
            ports=[port],
        )

    @property
    def _environment(self) -> list[str]:
        files = {"KRB5_CONFIG": self.client_settings, "KRB5_KDC_PROFILE": self._directory / "kdc.conf"}
        return ["env", *(f"{name}={path}" for name, path in files.items())]

    def _run(self, program: str, package: str, *words: str) -> None:
        command = [*self._environment, require(program, package), "-r", REALM, *words]
        subprocess.run(command, check=True, capture_output=True)

    def settings_for(self, port: int) -> Path:
        """Return a krb5.conf that has the realm's KDC at a loopback port, and never asks DNS."""
        path = self._directory / f"krb5-{port}.conf"
        path.write_text(f"""
[libdefaults]
  default_realm = {REALM}
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
  udp_preference_limit = 1
[realms]
  {REALM} = {{
    kdc = 127.0.0.1:{port}
  }}
""")
        return path

    def stop(self) -> None:
        """End the KDC."""
        self._daemon.stop()
