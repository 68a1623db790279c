"""NTLM for Dovecot by Samba's ``ntlm_auth``: NTLMv2 only, one password, no domain controller."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_servers.dovecot import DOMAIN, PASSWORD
from tests.real_servers.unpacked import ROOT

WINDOWS_DOMAIN = "FABRIKAM"


def ntlm_settings(directory: Path) -> str:
    """Return what to add to Dovecot's configuration, so that every user has `PASSWORD`."""
    samba = ROOT / "samba"
    if not (samba / "packages").exists():
        pytest.fail("samba is not unpacked: run `make test-servers` as root")
    state = directory / "samba"
    state.mkdir()
    places = ("lock", "state", "cache", "pid", "private", "ncalrpc")
    folders = "".join(f"{name} {'dir' if name == 'private' else 'directory'} = {state}\n" for name in places)
    options = f"server role = standalone\nntlm auth = ntlmv2-only\nworkgroup = {WINDOWS_DOMAIN}\n{folders}"
    (state / "smb.conf").write_text(f"[global]\n{options.replace('ncalrpc directory', 'ncalrpc dir')}")
    libraries = samba / "usr/lib/x86_64-linux-gnu"
    helper = directory / "ntlm_auth"
    helper.write_text(f"""#!/bin/sh
LD_LIBRARY_PATH={libraries}:{libraries}/samba exec {samba}/usr/bin/ntlm_auth \\
  --configfile={state}/smb.conf --domain={WINDOWS_DOMAIN} --username=canary --password={PASSWORD} "$@"
""")
    helper.chmod(0o755)
    return f"""
auth_mechanisms = plain ntlm
auth_use_winbind = yes
auth_winbind_helper_path = {helper}
auth_username_format = %Ln@{DOMAIN}
service auth {{
  user = root
}}
"""
