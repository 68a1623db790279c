"""A served application with a web configuration, and its certificates."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import httpx
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from monitor.state import AgentState
from monitor.web.access import WebConfigInForce, served_to_the_admitted
from monitor.web.serving import bind
from tests.fakes.certificates import Certified, certify

CA = certify("ca")
WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


_SALT = b"$2b$04$mailsondeAndItsTestsOu"  # fixed, because hashes are in the names of tests


def hashed(password: str) -> str:
    """Return a cheap hash, as htpasswd writes it."""
    return bcrypt.hashpw(password.encode(), _SALT).decode().replace("$2b$", "$2y$")


def users(**passwords: str) -> str:
    """Return the users' part of a web configuration."""
    return "basic_auth_users:\n" + "".join(f"  {user}: {hashed(word)}\n" for user, word in passwords.items())


@dataclass
class Site:
    """A served application and its web configuration."""

    folder: Path
    port: int
    in_force: WebConfigInForce
    state: AgentState

    def client(self, auth: tuple[str, str] | None = None, **options: object) -> httpx.AsyncClient:
        scheme = "https" if "verify" in options else "http"
        options.setdefault("verify", WITHOUT_TLS)  # a context of its own would cost each client time
        base = f"{scheme}://127.0.0.1:{self.port}"
        return httpx.AsyncClient(base_url=base, auth=auth, trust_env=False, timeout=120, **options)

    async def status(self, path: str = "/metrics", *auth: str) -> int:
        """Return the status of an answer over a connection of its own."""
        async with self.client((auth[0], auth[1]) if auth else None) as client:
            return (await client.get(path)).status_code

    def write(self, text: str) -> None:
        """Replace the web configuration as a whole, as editors do."""
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / "web.yml")


async def _text(request: Request) -> Response:
    return PlainTextResponse(request.url.path, headers={"x-frame-options": "sameorigin"})


@asynccontextmanager
async def site(folder: Path, text: str) -> AsyncIterator[Site]:
    """Serve an application with the web configuration ``text``."""
    (folder / "web.yml").write_text(text)
    bound = bind("127.0.0.1", 0)
    state = AgentState()
    in_force = WebConfigInForce(folder / "web.yml", state)
    async with served_to_the_admitted(Starlette(routes=[Route("/{path:path}", _text)]), bound, in_force):
        yield Site(folder, bound.getsockname()[1], in_force, state)
    bound.close()


TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
MUTUAL = TLS + "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n"


def install(folder: Path, name: str = "agent") -> Certified:
    """Write a new certificate of the agent and its key."""
    (folder / "ca.crt").write_bytes(CA.pem)
    leaf = certify(name, CA, is_ca=False)
    for suffix, content in {
        "key": leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "crt": leaf.pem,
    }.items():
        (folder / "new").write_bytes(content)
        (folder / "new").replace(folder / f"server.{suffix}")
    return leaf


def trusting(own: Certified | None = None, folder: Path | None = None) -> ssl.SSLContext:
    """Return a client's context that trusts the CA, and has a certificate of its own."""
    context = ssl.create_default_context(cadata=CA.pem.decode())
    if own is not None and folder is not None:
        (folder / "client.pem").write_bytes(
            own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + own.pem
        )
        context.load_cert_chain(folder / "client.pem")
    return context
