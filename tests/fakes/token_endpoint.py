"""A token endpoint that answers as a test scripts it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

from tests.fakes.scripted_server import Peer, scripted_server


class TokenEndpoint:
    """An open endpoint."""

    def __init__(self, port: int, forms: list[dict[str, str]]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.forms = forms
        """The requests."""


def answer(content: object, status: int = 200, *fields: str) -> bytes:
    """Return an HTTP answer with JSON, or with bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def token_endpoint(*answers: bytes) -> AsyncIterator[TokenEndpoint]:
    """Serve an endpoint for the block.

    It answers each request with the next of ``answers``, and the last one again and again; without any, it
    stays silent.
    """
    forms: list[dict[str, str]] = []

    async def script(peer: Peer) -> None:
        length = 0
        while line := await peer.expect(rb".*"):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        body = b""
        while len(body) < length:
            body += await peer.octets()
        forms.append(dict(parse_qsl(body.decode())))
        if not answers:
            await peer.until_closed()
            return
        await peer.chunks(answers[min(len(forms), len(answers)) - 1])
        await peer.close()

    async with scripted_server(script) as server:
        yield TokenEndpoint(server.port, forms)
