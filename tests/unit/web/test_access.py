"""Access by the web configuration: passwords, TLS, client certificates, limits, and changes of the file."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
import ssl
import threading
from pathlib import Path

import bcrypt
import httpx
import pytest
import uvloop
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from monitor.commands import health as health_module
from monitor.commands.health import health
from monitor.state import AgentState
from monitor.web import access, serving
from monitor.web.access import WebConfigError, WebConfigInForce
from tests.fakes.certificates import certify
from tests.unit.web.access_site import CA, MUTUAL, TLS, Site, install, site, trusting, users


@pytest.mark.parametrize("path", ["/", "/metrics", "/probe?probe=x", "/events", "/-/reload"])
async def test_nobody_reads_without_a_password(tmp_path: Path, path: str) -> None:
    """Everything but the health checks needs the right password of a known user."""
    async with site(tmp_path, users(alice="correct", bob="horse")) as served:
        assert await served.status(path) == 401
        assert await served.status(path, "alice", "horse") == 401
        assert await served.status(path, "mallory", "correct") == 401
        assert await served.status(path, "alice", "correct") == 200
        assert await served.status(path, "bob", "horse") == 200


async def test_health_checks_are_open(tmp_path: Path) -> None:
    """Orchestrators ask for the agent's health without a password, as often as they like."""
    async with site(tmp_path, users(alice="x") + "rate_limit: {interval: 1h, burst: 1}\n") as served:
        for _ in range(3):
            assert await served.status("/-/healthy") == 200
            assert await served.status("/-/ready") == 200


@pytest.mark.parametrize(
    "field",
    ["", "Basic", "Basic !!!", "Basic YWxpY2U=", "Bearer YWxpY2U6eA==", "Basic /w==", "Basic " + "A" * 9999],
)
async def test_malformed_credentials_are_refused(tmp_path: Path, field: str) -> None:
    """Fields without a user and a password are answered with the challenge of RFC 7617."""
    async with site(tmp_path, users(alice="x")) as served, served.client() as client:
        answer = await client.get("/", headers={"authorization": field})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="mailsonde", charset="UTF-8"'


@pytest.mark.parametrize("password", ["", "pässword", "a:b", "x" * 72, "x" * 200])
async def test_unusual_passwords(tmp_path: Path, password: str) -> None:
    """Passwords may be empty, long or in any script; bcrypt reads their first 72 octets."""
    digest = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    async with site(tmp_path, f"basic_auth_users: {{alice: {digest}}}\n") as served:
        field = base64.b64encode(f"alice:{password}".encode()).decode()
        async with served.client() as client:
            assert (await client.get("/", headers={"authorization": f"bAsIc {field}"})).status_code == 200
        assert await served.status("/", "alice", f"y{password}") == 401


async def test_guesses_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While guesses are checked, known users are served at once, and too many guesses are turned away."""
    async with site(tmp_path, users(alice="correct")) as served:
        assert await served.status("/", "alice", "correct") == 200
        go_on, at_once, most = threading.Event(), 0, 0

        def slow(password: bytes, hashed: str) -> bool:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            assert go_on.wait(30)
            at_once -= 1
            return False

        monkeypatch.setattr(access, "_fits", slow)
        guesses = [
            asyncio.create_task(served.status("/", "alice", f"guess {number}")) for number in range(40)
        ]
        async with asyncio.timeout(120):
            while not at_once:  # noqa: ASYNC110 # set by another thread
                await asyncio.sleep(0.01)
        assert await served.status("/", "alice", "correct") == 200
        first, _ = await asyncio.wait(guesses, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result() for task in first} == {503}
        go_on.set()
        found = await asyncio.gather(*guesses)
    assert sorted(set(found)) == [401, 503]
    assert found.count(401) == 21
    assert most == 1


async def test_a_password_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right and wrong credentials cost one check each, also if many requests bring them at once."""
    async with site(tmp_path, users(alice="correct")) as served:
        checks = []
        fits = access._fits
        monkeypatch.setattr(access, "_fits", lambda *both: checks.append(both) or fits(*both))
        for password, status in (("correct", 200), ("wrong", 401)):
            found = await asyncio.gather(*(served.status("/", "alice", password) for _ in range(10)))
            assert set(found) == {status}
        assert len(checks) == 2


async def test_unknown_users_take_as_long_as_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the same cost is made for a user who does not exist."""
    costs = []
    fits = access._fits
    monkeypatch.setattr(access, "_fits", lambda word, hashed: costs.append(hashed[4:6]) or fits(word, hashed))
    async with site(tmp_path, users(alice="correct")) as served:
        await served.status("/", "mallory", "x")
        await served.status("/", "alice", "x")
    assert costs == ["04", "04"]


async def test_users_change_without_a_restart(tmp_path: Path) -> None:
    """The next request after a change of the file meets its users; a password that was right is forgotten."""
    async with site(tmp_path, users(alice="old")) as served:
        assert await served.status("/", "alice", "old") == 200
        served.write(users(alice="new"))
        assert await served.status("/", "alice", "old") == 401
        assert await served.status("/", "alice", "new") == 200
        served.write("basic_auth_users: {}\n")
        assert await served.status("/") == 200


@pytest.mark.parametrize(
    "broken", ["basic_auth_users: {alice: hunter2}\n", "{", "tls_server_config: {}\n", None]
)
async def test_a_broken_file_leaves_the_old_one_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    """A broken or missing file changes nothing, is logged once, and is told until it is valid."""
    async with site(tmp_path, users(alice="x")) as served:
        if broken is None:
            (tmp_path / "web.yml").unlink()
        else:
            served.write(broken)
        for _ in range(3):
            assert await served.status() == 401
            assert await served.status("/", "alice", "x") == 200
        assert not served.state.web_config_is_valid
        assert [each.levelno for each in caplog.records if "web.yml" in each.message] == [logging.ERROR]
        assert "hunter2" not in caplog.text
        served.write(users(bob="y"))
        assert await served.status("/", "bob", "y") == 200
        assert served.state.web_config_is_valid


async def test_tls_is_not_switched_off_by_a_change(tmp_path: Path) -> None:
    """A file that would serve the agent without TLS from now on is refused."""
    install(tmp_path)
    async with site(tmp_path, TLS) as served:
        served.write(users(alice="x"))
        served.in_force.current()
        assert not served.state.web_config_is_valid
        async with served.client(verify=trusting()) as client:
            assert (await client.get("/")).status_code == 200


def test_a_broken_file_does_not_start(tmp_path: Path) -> None:
    """The agent does not start with a web configuration that it cannot use."""
    (tmp_path / "web.yml").write_text("basic_auth_users:\n  alice: hunter2\n")
    with pytest.raises(WebConfigError, match=r"web\.yml:2: basic_auth_users\.alice: is no bcrypt hash"):
        WebConfigInForce(tmp_path / "web.yml", AgentState())


async def test_the_rate_limit(tmp_path: Path) -> None:
    """As many requests as the burst are answered, and the next one is told to come later."""
    async with site(tmp_path, "rate_limit: {interval: 1h, burst: 3}\n") as served:
        assert [await served.status() for _ in range(5)] == [200, 200, 200, 429, 429]
        served.write("rate_limit: {interval: 0, burst: 1}\n")
        assert [await served.status() for _ in range(3)] == [200, 200, 200]


async def test_header_fields(tmp_path: Path) -> None:
    """Configured header fields are in every answer, in place of the agent's own."""
    text = "http_server_config: {headers: {X-Frame-Options: deny, Strict-Transport-Security: max-age=1}}\n"
    async with site(tmp_path, text + users(alice="x")) as served:
        for auth in (None, ("alice", "x")):
            async with served.client(auth) as client:
                headers = (await client.get("/")).headers
                assert headers.get_list("x-frame-options") == ["deny"]
                assert headers["strict-transport-security"] == "max-age=1"


async def certificate_of(served: Site) -> bytes:
    """Return the certificate of a new connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=trusting())
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(found)


async def test_certificates_change_without_a_restart(tmp_path: Path) -> None:
    """The next connection after a change of the files has the new certificate; half a change is none."""
    first = install(tmp_path)
    async with site(tmp_path, TLS) as served:
        assert await certificate_of(served) == first.certificate.public_bytes(Encoding.DER)
        old_key = (tmp_path / "server.key").read_bytes()
        second = install(tmp_path)
        assert await certificate_of(served) == second.certificate.public_bytes(Encoding.DER)
        new_key = (tmp_path / "server.key").read_bytes()
        (tmp_path / "server.key").write_bytes(old_key)
        assert await certificate_of(served) == second.certificate.public_bytes(Encoding.DER)
        assert not served.state.web_config_is_valid
        (tmp_path / "server.key").write_bytes(new_key)
        assert await certificate_of(served) == second.certificate.public_bytes(Encoding.DER)
        assert served.state.web_config_is_valid


async def get(served: Site, context: ssl.SSLContext) -> int | None:
    """Return the status of an answer, or None if TLS was refused."""
    try:
        async with served.client(verify=context) as client:
            return (await client.get("/-/healthy")).status_code
    except httpx.TransportError:
        return None


async def test_client_certificates(tmp_path: Path) -> None:
    """With RequireAndVerifyClientCert, only certificates of the CA are served, on health checks as well."""
    install(tmp_path)
    known, foreign = certify("prometheus", CA, is_ca=False), certify("prometheus", is_ca=False)
    async with site(tmp_path, MUTUAL) as served:
        assert await get(served, trusting(known, tmp_path)) == 200
        assert await get(served, trusting(foreign, tmp_path)) is None
        assert await get(served, trusting()) is None
        served.write(MUTUAL.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
        assert await get(served, trusting()) == 200
        assert await get(served, trusting(foreign, tmp_path)) is None


async def test_names_of_client_certificates(tmp_path: Path) -> None:
    """With client_allowed_sans, a verified certificate also needs one of the names."""
    install(tmp_path)
    known = certify("prometheus", CA, is_ca=False)  # for localhost and 127.0.0.1
    async with site(tmp_path, MUTUAL + "  client_allowed_sans: [other, 127.0.0.1]\n") as served:
        assert await get(served, trusting(known, tmp_path)) == 200
        served.write(MUTUAL + "  client_allowed_sans: [other]\n")
        assert await get(served, trusting(known, tmp_path)) is None


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", os.urandom(999)])
async def test_idle_handshakes_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Clients that begin no handshake lose their place to others."""
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 10)
    install(tmp_path)
    async with site(tmp_path, TLS) as served:
        writers = []
        for _ in range(30):
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(said)
            writers.append(writer)
        assert await get(served, trusting()) == 200
    for writer in writers:
        writer.transport.abort()


async def test_connections_that_end_in_the_handshake_leave_nothing(tmp_path: Path) -> None:
    """A client that leaves in the middle of its handshake leaves no connection and no task."""
    install(tmp_path)
    hello = ssl.MemoryBIO()
    client = trusting().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    greeting = hello.read()
    async with site(tmp_path, TLS) as served:
        before = len(asyncio.all_tasks())
        for said in (b"", greeting[:50], greeting):
            with socket.create_connection(("127.0.0.1", served.port)) as leaving:
                leaving.sendall(said)
        async with asyncio.timeout(120):
            while await get(served, trusting()) != 200 or len(asyncio.all_tasks()) > before:
                pass


def test_tls_on_the_agents_own_event_loop(tmp_path: Path) -> None:
    """On uvloop, whose transports are not of asyncio's classes, TLS works, and idle clients are dropped."""
    install(tmp_path)

    async def served_on_uvloop() -> None:
        async with site(tmp_path, MUTUAL) as served:
            known = certify("prometheus", CA, is_ca=False)
            assert await get(served, trusting(known, tmp_path)) == 200
            assert await get(served, trusting()) is None
            idle, writer = await asyncio.open_connection("127.0.0.1", served.port)
            assert await get(served, trusting(known, tmp_path)) == 200
        assert await asyncio.wait_for(idle.read(), 120) == b""
        writer.transport.abort()

    uvloop.run(served_on_uvloop())


@pytest.mark.parametrize("text", [users(alice="x"), TLS + users(alice="x"), MUTUAL])
async def test_the_health_command_needs_no_credentials(tmp_path: Path, text: str) -> None:
    """`mailsonde health` finds the agent alive by HTTP and HTTPS, without a password or a certificate."""
    install(tmp_path)
    async with site(tmp_path, text) as served:
        found = await asyncio.to_thread(CliRunner().invoke, health, [f"127.0.0.1:{served.port}"])
        assert (found.exit_code, found.output) == (0, "the agent is alive\n")
    gone = await asyncio.to_thread(CliRunner().invoke, health, [f"127.0.0.1:{served.port}"])
    assert gone.exit_code == 1
    assert "Connection refused" in gone.output


@pytest.mark.parametrize(
    "said", [b"", b"\x15\x03\x03\x00\x02\x02\x28", b"220 ready\r\n", b"HTTP/1.0 404 No\r\n\r\n"]
)
async def test_the_health_command_is_not_deceived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Whatever else answers at the agent's address, or nothing in time, is no agent that is alive."""
    monkeypatch.setattr(health_module, "HEALTH_SECONDS", 0.2)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        if not said:
            await reader.read()  # until the client has had enough
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await asyncio.to_thread(CliRunner().invoke, health, [f"127.0.0.1:{port}"])
    assert found.exit_code == 1
    assert found.output.count("\n") == 1
