"""Targets for files and texts from people: each mistake is reported in one line, without a traceback."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import cast

from pydantic import TypeAdapter, ValidationError

from monitor.config.listen import parse_listen
from monitor.config.load import ConfigurationError, load
from monitor.init.autoconfig import PAGE_ENDPOINTS_LIMIT, ask_autoconfig, ask_autodiscover
from monitor.init.endpoint import Endpoint, given_endpoints, host_name
from monitor.init.web import PageError, Web
from monitor.init.writing import Plan, written
from monitor.ledger.backend import ledger_path
from monitor.thresholds import load_thresholds
from probes.core.secret import SECRET_LIMIT, Secret
from probes.core.setting_types import EmailAddress, FolderName, HostName, Name, ServerName, parse_duration
from probes.protocols.dns import DomainName
from probes.protocols.https import Response, origin_of
from tests.fuzz.target import Target, require_shown

LINE = 2000
"""Most characters of one told mistake: some list every known key."""

_ROOT = Path(__file__).parents[2]


@cache
def _directory() -> Path:
    """Return a directory for this process, with the files that configurations refer to."""
    directory = Path(tempfile.mkdtemp(prefix="mailsonde-fuzz-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    (directory / "password").write_text("x")
    return directory


def _file(octets: bytes) -> Path:
    path = _directory() / "mailsonde.yaml"
    path.write_bytes(octets)
    return path


def configuration(octets: bytes) -> None:
    """Load a configuration; a valid one must also be valid without its secrets."""
    path = _file(octets)
    try:
        load(path)
    except ConfigurationError as error:
        _require_told(error)
        with suppress(ConfigurationError):
            load(path, secrets=False)
    else:
        load(path, secrets=False)


def thresholds(octets: bytes) -> None:
    """Load a site's own thresholds."""
    try:
        load_thresholds(_file(octets))
    except ConfigurationError as error:
        _require_told(error)


def _require_told(error: ConfigurationError) -> None:
    assert error.mistakes
    for mistake in error.mistakes:
        assert mistake.line >= 0
        require_shown(str(mistake), LINE)


_TYPES = tuple(map(TypeAdapter, (DomainName, EmailAddress, FolderName, HostName, Name, ServerName)))
_READERS = (parse_duration, parse_listen, host_name, ledger_path, origin_of)


def setting(octets: bytes) -> None:
    """Read a text as each type of setting; an invalid one must raise ValueError."""
    text = octets.decode("utf-8", "replace")
    for made in _TYPES:
        with suppress(ValidationError):
            made.validate_python(text)
    for read in _READERS:
        with suppress(ValueError):
            read(text)
    for default in ("imap", "smtp"):
        with suppress(ValueError):
            for endpoint in given_endpoints(text, default, allow_insecure=True):
                require_shown(str(endpoint))


def secret_file(octets: bytes) -> None:
    """Read a password from a file; an accepted one must fit on a protocol line."""
    path = _directory() / "secret"
    path.write_bytes(octets)
    with suppress(ValidationError):
        secret = TypeAdapter(Secret).validate_python({"file": str(path)}).get_secret_value()
        assert 0 < len(secret.encode()) <= SECRET_LIMIT
        assert not set(secret) & set("\r\n\0")


class _Page:
    """Answers every request with one page."""

    def __init__(self, body: bytes) -> None:
        self._page = Response("https://example.com/", 200, (), body, False, None)

    async def fetch(self, url: str, content: bytes | None = None) -> Response:
        return self._page


def autoconfig(octets: bytes) -> None:
    """Find servers in a domain's pages; a configuration written with them must load."""
    web, address = cast("Web", _Page(octets)), "canary@example.com"

    async def ask() -> list[Endpoint]:
        found = []
        for question in (
            ask_autoconfig("https://example.com/a.xml", address, web),
            ask_autodiscover("example.com", address, web),
        ):
            try:
                endpoints = await question
            except PageError as error:
                require_shown(str(error))
            else:
                assert len(endpoints) <= PAGE_ENDPOINTS_LIMIT
                found += endpoints
        return found

    found = asyncio.run(ask())
    for endpoint in found:
        require_shown(str(endpoint))
    submission = next((each for each in found if each.protocol == "smtp"), None)
    incoming = next((each for each in found if each.protocol != "smtp"), None)
    if submission is not None and incoming is not None:
        _comes_back(submission, incoming, submission.username or "canary")


def login_name(octets: bytes) -> None:
    """Write a configuration with any valid login name; it must be read back unchanged."""
    username = octets.decode("utf-8", "replace")
    if 1 <= len(username) <= 255 and username.isprintable():
        _comes_back(
            Endpoint("smtp", "mx.example.com", 465, "implicit", "you", vouched=True),
            Endpoint("imap", "192.0.2.1", 143, "starttls", "you", vouched=True),
            username,
        )


def _comes_back(submission: Endpoint, incoming: Endpoint, username: str) -> None:
    plan = Plan(
        address="canary@example.com",
        username=username,
        credentials=MappingProxyType({"file": "password"}),
        submission=submission,
        incoming=incoming,
        domain="example.com",
        location="here",
        listen="127.0.0.1:0",
        ledger="sqlite:ledger.db",
    )
    loaded = load(_file(written(plan).encode()))
    assert loaded.mailboxes["canary"].username == username
    servers = [(server.protocol, server.host, server.port, server.tls) for server in loaded.servers.values()]
    assert servers == [(each.protocol, each.host, each.port, each.tls) for each in (submission, incoming)]


_EXAMPLES = tuple((_ROOT / "config" / name).read_bytes() for name in ("minimal.yaml", "example.yaml"))
_BAD = tuple(
    path.read_bytes()
    for path in sorted((_ROOT / "tests/unit/config/bad").glob("*.yaml"))
    if "alias" not in path.name  # those take long by themselves
)
_KEYS = (
    b"agent",
    b"servers",
    b"mailboxes",
    b"probes",
    b"kind",
    b"name",
    b"password",
    b"tls_ca",
    b"interval",
    b"x-a",
)
_YAML = (
    b": ",
    b"\n",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!int ",
    b"!!float ",
    b"!!bool ",
)
_TAGS = (
    b"!!timestamp ",
    b"!!binary ",
    b"!!set ",
    b"!!omap ",
    b'""',
    b"~",
    b"1:1",
    b"0x",
    b"{file: password}",
    b"\\e",
)

TARGETS = (
    Target("configuration", configuration, (*_EXAMPLES, *_BAD[::6]), (*_KEYS, *_YAML, *_TAGS), 20_000),
    Target(
        "thresholds",
        thresholds,
        ((_ROOT / "alerts/thresholds.yaml").read_bytes(), b"down_for: 1m\n", b"slo_fast: [{factor: 1}]\n"),
        (*_YAML, *_TAGS, b"slo_windows: ", b"runbooks: ", b"30s"),
        20_000,
    ),
    Target(
        "setting",
        setting,
        (
            b"imaps://mx.example.com:993",
            b"canary@example.com",
            b"b\xc3\xbccher.example",
            b"sqlite:///a/b.db",
            b"1.5h",
        ),
        (
            b"xn--",
            b".",
            b"@",
            b"://",
            b"[::1]",
            b":",
            b"%",
            b"\xef\xbc\x91",
            b"a" * 63,
            b"\xe2\x80\x8d",
            b"\xd7\x90",
        ),
    ),
    Target(
        "secret_file", secret_file, (b"s3cret\n", b"\xc3\xa4\r\n", b""), (b"\n", b"\r", b"\0", b"\xff"), 8192
    ),
    Target(
        "autoconfig",
        autoconfig,
        (
            b"<clientConfig><incomingServer type='imap'><hostname>a.%EMAILDOMAIN%</hostname><port>993</port>"
            b"<socketType>SSL</socketType><username>%EMAILADDRESS%</username></incomingServer>"
            b"<outgoingServer type='smtp'>"
            b"<hostname>a.example.com</hostname><port>587</port><socketType>STARTTLS</socketType>"
            b"<username>a: b</username></outgoingServer></clientConfig>",
            b"<a><incomingServer type='imap'><hostname>a.b</hostname><port>993</port>"
            b"<socketType>SSL</socketType></incomingServer><outgoingServer type='smtp'>"
            b"<hostname>a.b</hostname><port>465</port><socketType>SSL</socketType><username>a&#133;b</username></outgoingServer></a>",
            b"<A xmlns='urn:x'><Protocol><Type>IMAP</Type><Server>a.b</Server><Port>993</Port></Protocol>"
            b"<Protocol><Type>SMTP</Type><Server>a.b</Server><Port>465</Port><LoginName>'#</LoginName></Protocol></A>",
            b'{"Url": "https://outlook.office365.com/x"}',
            b"<?xml version='1.0' encoding='iso-8859-1'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
        ),
        (
            b"<a>",
            b"</a>",
            b"<hostname>",
            b"&#0;",
            b"&lt;",
            b"encoding='",
            b"utf-7",
            b"unicode_escape",
            b"<![CDATA[",
        ),
        64 * 1024,
    ),
    Target(
        "login_name",
        login_name,
        (b"canary", b"a: #b", b"'\"", b"- x", b"1e3", b"\xc3\xa4"),
        (b": ", b"#", b"!"),
        255,
    ),
)
