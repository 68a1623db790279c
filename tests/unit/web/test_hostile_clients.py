"""Clients that try to get past the web configuration, or to keep others out."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from monitor.web import serving, tls
from tests.unit.web.access_site import TLS, Site, install, site, trusting, users


async def answers(served: Site, octets: bytes) -> bytes:
    """Return all that the agent says to ``octets`` until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(octets)
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionResetError:  # it had not read everything
        return b""
    finally:
        writer.transport.abort()


def request(target: str, *fields: str, method: str = "GET") -> bytes:
    """Return a request for ``target`` as it is, with further header fields."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


@pytest.mark.parametrize(
    "target",
    [
        "//-/healthy/../metrics",
        "/-/healthy/../../metrics",
        "/-/healthy/..%2f..%2fmetrics",
        "/-/healthy%2f..%2f..%2fmetrics",
        "/metrics?/-/healthy",
        "/metrics#/-/healthy",
        "/metrics/-/healthy",
        "/-/healthy/",
        "//-/healthy",
        "/-/healthy;/metrics",
        "/-/healthy%00",
        "/-/healthy%0d%0a",
        "/-/HEALTHY",
        "/./-/healthy",
        "http://127.0.0.1/-/healthy",
        "http://127.0.0.1/metrics",
        "*",
        "/%2d/%68ealthy%3f",
    ],
)
async def test_only_the_open_paths_themselves_are_open(tmp_path: Path, target: str) -> None:
    """However a path is written, it is open only if it is a health check to the application, too."""
    async with site(tmp_path, users(alice="x")) as served:
        for method in ("GET", "HEAD", "OPTIONS", "POST", "TRACE", "PROPFIND"):
            status = (await answers(served, request(target, method=method))).split(b" ")[1]
            assert status in {b"400", b"401"}, method


@pytest.mark.parametrize(
    "fields",
    [
        ("Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"),
        ("Upgrade: h2c", "Connection: upgrade, HTTP2-Settings", "HTTP2-Settings: AAAA"),
        ("X-Forwarded-For: 127.0.0.1", "X-Original-URL: /-/healthy", "X-Rewrite-URL: /-/healthy"),
        ("Authorization: Basic", "Authorization: Basic eDp4"),
        ("Authorization: Basic " + "QUFB" * 4000,),
    ],
)
async def test_no_header_field_opens_the_pages(tmp_path: Path, fields: tuple[str, ...]) -> None:
    """Upgrades to other protocols and what proxies add are no way around the password."""
    async with site(tmp_path, users(alice="x")) as served:
        assert (await answers(served, request("/metrics", *fields))).split(b" ")[1] in {b"400", b"401"}


@pytest.mark.parametrize(
    "octets",
    [
        request("/metrics", "Content-Length: 60", method="POST") + request("/-/healthy"),
        request("/-/healthy", "Content-Length: 5", "Content-Length: 6") + b"GET / ",
        request("/-/healthy", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST")
        + b"0\r\n\r\n"
        + request("/metrics"),
        request("/-/healthy", "Transfer-Encoding: xchunked") + request("/metrics"),
        request("/-/healthy", "Transfer-Encoding : chunked") + b"0\r\n\r\n" + request("/metrics"),
        request("/-/healthy", "Transfer-Encoding: chunked") + b"5\r\nGET /XX0\r\n\r\n" + request("/metrics"),
        request("/-/healthy", "Content-Length: +5") + b"GET / ",
        request("/-/healthy", "X: a\nAuthorization: Basic eDp4"),
    ],
)
async def test_no_request_is_smuggled(tmp_path: Path, octets: bytes) -> None:
    """Octets after a request are a body, or a request of their own that needs its own password."""
    async with site(tmp_path, users(alice="x")) as served:
        found = await answers(served, octets.replace(b"Connection: close\r\n", b""))
    assert found.count(b"HTTP/1.1 200") <= 1  # the open health check
    assert b"\r\n/metrics" not in found


async def test_long_header_fields_are_refused(tmp_path: Path) -> None:
    """64 KiB of header fields, finished or not, are answered with an error and held no longer."""
    async with site(tmp_path, users(alice="x")) as served:
        for octets in (request("/", "X: " + "a" * 65536), b"GET / HTTP/1.1\r\nX: " + b"a" * 65536):
            assert (await answers(served, octets)).startswith(b"HTTP/1.1 4")


async def test_slow_requests_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that never finish their header fields or their body lose their place to others."""
    monkeypatch.setattr("monitor.web.serving.MOST_CONNECTIONS", 5)
    begun = [b"GET / HTTP/1.1\r\nX: ", request("/", "Content-Length: 99", method="POST") + b"x"]
    async with site(tmp_path, users(alice="x")) as served:
        slow = []
        for number in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(begun[number % 2].replace(b"Connection: close\r\n", b""))
            slow.append((reader, writer))
        assert await served.status("/", "alice", "x") == 200
        assert await asyncio.wait_for(slow[0][0].read(), 20) is not None  # it ends
        for _, writer in slow:
            writer.transport.abort()


@pytest.mark.parametrize("name", ["a\\0b", "x" * 5000])
async def test_a_path_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    """A path that the system refuses is a mistake of the file, and the previous one stays in force."""
    install(tmp_path)
    async with site(tmp_path, TLS + users(alice="x")) as served:
        served.write(f'tls_server_config: {{cert_file: "{name}", key_file: server.key}}\n')
        async with served.client(("alice", "x"), verify=trusting()) as client:
            assert (await client.get("/")).status_code == 200
        assert not served.state.web_config_is_valid


async def test_idle_handshakes_leave_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that begin no handshake have only a part of the descriptors that are kept for serving."""
    monkeypatch.setattr(serving, "kept", lambda: 20)
    install(tmp_path)
    async with site(tmp_path, TLS) as served:
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(30)]
        async with served.client(verify=trusting()) as client:
            assert (await client.get("/")).status_code == 200
        assert sum(task.get_name() == "TLS handshake" for task in asyncio.all_tasks()) <= 20 // 5
        for _, writer in idle:
            writer.transport.abort()


async def test_a_connection_without_a_descriptor_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the descriptors run out, a new connection ends at once, and the next one may succeed."""
    install(tmp_path)

    def refused(_: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    async with site(tmp_path, TLS) as served:
        with monkeypatch.context() as patch:
            patch.setattr(tls.os, "dup", refused)
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.transport.abort()
        async with served.client(verify=trusting()) as client:
            assert (await client.get("/")).status_code == 200
