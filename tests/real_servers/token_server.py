"""The token endpoint for tests: npm's oauth2-mock-server, and Dovecot's settings for its tokens."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.real_servers.dovecot import DOMAIN, TlsFiles
from tests.real_servers.process import Daemon, free_port, require
from tests.real_servers.unpacked import ROOT

_SCRIPT = Path(__file__).with_suffix(".js")


class TokenServer:
    """Issues a token with any claims to any client, by client credentials or a refresh token."""

    def __init__(self, directory: Path, tls: TlsFiles) -> None:
        node = require("node", "nodejs")
        package = ROOT / "npm" / "node_modules" / "oauth2-mock-server"
        if not package.exists():
            pytest.fail("oauth2-mock-server is not unpacked: run `make test-servers` as root")
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        self.directory = directory
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._tls = tls
        environment = ["env", f"NODE_PATH={package.parent}"]
        command = [*environment, node, _SCRIPT, str(self.port), tls.key, tls.certificate]
        self._daemon = Daemon(command, directory / "token_server.log", ports=[self.port])

    def entry(self, user: str, **claims: object) -> dict[str, Any]:
        """Return an entry of ``oauth2`` whose tokens are for ``user``, with further ``claims``."""
        return {
            "provider": "generic",
            "token_url": f"{self.url}/token",
            "tls_ca": str(self._tls.authority),
            "client_id": "mailsonde",
            "client_secret": {"file": "password"},
            "scope": json.dumps({"upn": f"{user}@{DOMAIN}", **claims}),
        }

    def issued(self) -> list[str]:
        """Return all tokens issued so far."""
        return self._daemon.log.read_text().split()

    def dovecot_settings(self, audience: str = "") -> str:
        """Return the settings with which a Dovecot checks these tokens by their signatures, itself.

        If there is an ``audience``, tokens must be for it.
        """
        keys = self.directory / "keys" / "default" / "RS256"
        keys.mkdir(parents=True)
        trusted = ssl.create_default_context(cafile=self._tls.authority)
        with urlopen(f"{self.url}/jwks", context=trusted) as answer:  # noqa: S310 # it is https
            (key,) = json.load(answer)["keys"]
        numbers = rsa.RSAPublicNumbers(_number(key["e"]), _number(key["n"]))
        pem = numbers.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (keys / key["kid"]).write_bytes(pem)
        passdb = self.directory / "dovecot-oauth2.conf"
        passdb.write_text(
            f"introspection_mode = local\n"
            f"local_validation_key_dict = fs:posix:prefix={self.directory}/keys/\n"
            f"username_attribute = upn\n"
            f"issuers = https://localhost:{self.port}\n" + (f"audience = {audience}\n" if audience else "")
        )
        return f"""
auth_mechanisms = plain login xoauth2 oauthbearer
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {passdb}
}}
"""

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()


def _number(text: str) -> int:
    """Return a number of a JSON Web Key (RFC 7518 section 6.3.1)."""
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
