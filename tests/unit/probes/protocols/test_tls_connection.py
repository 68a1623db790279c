"""TLS of our own: every octet arrives once and in order, and every end is noticed."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from OpenSSL import SSL

from probes.protocols.tls import client_context
from probes.protocols.tls_connection import RECORD, TlsConnection
from tests.real_servers.dovecot import TlsFiles


class Wire(asyncio.Transport):
    """Keeps what a client sends."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.writes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data
        self.writes += 1

    def is_closing(self) -> bool:
        return False


class Server:
    """The server's side, in memory, by pyOpenSSL: Python's own module cannot renegotiate."""

    def __init__(self, files: TlsFiles, version: int) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate_chain_file(str(files.certificate))
        context.use_privatekey_file(str(files.key))
        context.set_max_proto_version(version)
        self.connection = SSL.Connection(context)
        self.connection.set_accept_state()
        self.heard = bytearray()
        self.wire = Wire()
        self.client = TlsConnection(client_context(files.authority), "localhost", self.wire)

    def told(self) -> bytes:
        """Let the server read what the client sent; return what it says."""
        sent, self.wire.sent = bytes(self.wire.sent), bytearray()
        if sent:
            self.connection.bio_write(sent)
        try:
            while True:
                self.heard += self.connection.recv(RECORD)
        except SSL.WantReadError:
            pass
        try:
            return self.connection.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""

    def shake_hands(self) -> None:
        while not self.client.handshake():
            self.client.received(self.told())
        self.client.send_records()
        self.client.received(self.told())  # session tickets


VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])


@VERSIONS
def test_everything_arrives(server_tls: TlsFiles, version: int) -> None:
    """Text of many records arrives whole in both directions, however the network cuts the records."""
    server = Server(server_tls, version)
    server.shake_hands()
    text, buffer = bytes(range(256)) * 300, bytearray()
    server.client.encrypt(text)
    server.told()
    assert server.heard == text
    server.connection.sendall(text)
    records = server.told()
    for begin in range(0, len(records), 1000):
        server.client.received(records[begin : begin + 1000])
        assert not server.client.decrypt(buffer)
    assert buffer == text


def test_the_first_command_shares_a_write_with_the_end_of_the_handshake(server_tls: TlsFiles) -> None:
    """A session by TLS 1.3 writes twice until the server has its first command."""
    server = Server(server_tls, SSL.TLS1_3_VERSION)
    while not server.client.handshake():
        server.client.received(server.told())
    server.client.encrypt(b"NOOP\r\n")
    server.told()
    assert server.heard == b"NOOP\r\n"
    assert server.wire.writes == 2


def test_commands_during_a_renegotiation_follow_it(server_tls: TlsFiles) -> None:
    """A command that is sent while the server shakes hands again is sent once, and not lost."""
    server = Server(server_tls, SSL.TLS1_2_VERSION)
    server.shake_hands()
    assert server.connection.renegotiate()
    server.connection.do_handshake()
    buffer = bytearray()
    server.client.received(server.told())
    assert not server.client.decrypt(buffer)
    server.client.encrypt(b"NOOP\r\n")
    server.client.encrypt(b"QUIT\r\n")
    for _ in range(4):
        if said := server.told():
            server.client.received(said)
            assert not server.client.decrypt(buffer)
    assert server.connection.total_renegotiations() == 1
    assert server.heard == b"NOOP\r\nQUIT\r\n"


@VERSIONS
def test_the_end_comes_after_the_last_words(server_tls: TlsFiles, version: int) -> None:
    """What the server says before it ends TLS is read, and the end is told."""
    server = Server(server_tls, version)
    server.shake_hands()
    server.connection.sendall(b"421 closing\r\n")
    server.connection.shutdown()
    server.client.received(server.told())
    buffer = bytearray()
    assert server.client.decrypt(buffer)
    assert buffer == b"421 closing\r\n"


@VERSIONS
def test_a_forged_record_is_an_error(server_tls: TlsFiles, version: int) -> None:
    """A record that was changed on the way ends the connection with an alert; nothing of it is read."""
    server = Server(server_tls, version)
    server.shake_hands()
    server.connection.sendall(b"250 ok\r\n")
    record = bytearray(server.told())
    record[-1] ^= 1
    server.client.received(bytes(record))
    buffer = bytearray()
    with pytest.raises(ssl.SSLError):
        server.client.decrypt(buffer)
    assert not buffer
    assert server.wire.sent
