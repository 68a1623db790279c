"""What ``validate`` says of logins by Kerberos, with and without the package gssapi."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from monitor.config.load import ConfigurationError, load
from probes.core.kerberos_user import principal_of

HTTP = """
probes:
  - name: web
    kind: http
    url: https://mail.example.com/
    username: {username}
    password: {{env: TEST_SECRET}}
    auth: kerberos
"""
SMTP = """
servers:
  out:
    protocol: smtp
    host: mail.example.com
    tls: starttls
    username: {username}
    password: {{env: TEST_SECRET}}
    auth: gssapi
probes:
  - {{name: out, kind: smtp, server: out}}
"""
PLACES = [(HTTP, "8: probes[0].auth: "), (SMTP, "9: servers.out.auth: ")]


def mistakes(
    text: str, username: str, module: ModuleType | None, directory: Path, patch: pytest.MonkeyPatch
) -> str:
    """Return the mistakes of a configuration where gssapi is ``module``, or cannot be imported."""
    patch.setenv("TEST_SECRET", "s3cret")
    patch.setitem(sys.modules, "gssapi", module)
    path = directory / "mailsonde.yaml"
    path.write_text(f"agent: {{ledger: 'sqlite:ledger.db'}}{text.format(username=username)}")
    try:
        load(path)
    except ConfigurationError as error:
        return str(error).removeprefix(f"{path}:")
    return ""


@pytest.mark.parametrize(("text", "place"), PLACES)
def test_without_gssapi(text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake names file, line and key, and says what to install."""
    told = mistakes(text, "canary", None, tmp_path, monkeypatch)
    assert told == (
        f"{place}Kerberos needs the package gssapi, which cannot be imported; run: pip install "
        "'mailsonde[kerberos]', which compiles it with a C compiler and libkrb5-dev"
    )


@pytest.mark.parametrize(("text", "place"), PLACES)
def test_with_gssapi(text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package, names of principals are accepted, and those of Windows are refused."""
    module = ModuleType("gssapi")
    assert mistakes(text, "canary@EXAMPLE.COM", module, tmp_path, monkeypatch) == ""
    told = mistakes(text, "EXAMPLE\\canary", module, tmp_path, monkeypatch)
    assert told == f"{place}Kerberos takes a username such as user or user@REALM"


def test_principals() -> None:
    """The realm is in upper case, whatever was written; without one, it is the machine's default."""
    assert principal_of("canary") == "canary"
    assert principal_of("Canary@example.com") == "Canary@EXAMPLE.COM"


@pytest.mark.parametrize("username", ["", "@EXAMPLE.COM", "canary@", "a@b@c", "EXAMPLE\\canary"])
def test_no_principals(username: str) -> None:
    """Anything else is refused, with what to write."""
    with pytest.raises(ValueError, match="user@REALM"):
        principal_of(username)
