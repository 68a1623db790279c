"""Reads this machine's settings for names: hosts(5), resolv.conf(5) and nsswitch.conf(5).

Each file is read again when it changes. Invalid lines are skipped, as in the C library.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from probes.core.regular_file import FileVersion, version_of
from probes.core.setting_types import is_ip_address

T = TypeVar("T")

MOST_NAMESERVERS = 3
"""Maximum number of name servers to use, as in the C library."""

_OPTION_LIMITS = {"ndots": (0, 15), "timeout": (1, 30), "attempts": (1, 5)}  # as in the C library
_DECIMAL = re.compile(r"[0-9]{1,9}")
_NSS_ACTION = re.compile(r"\[[^\[\]]*\]")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StubResolver:
    """How to query DNS, from resolv.conf(5).

    ``options`` may have ``ndots``, ``timeout`` (seconds), ``attempts`` and ``rotate``.
    """

    nameservers: tuple[str, ...]
    search: tuple[str, ...]
    options: Mapping[str, int]

    def names_for(self, host: str) -> list[str]:
        """Return the absolute names to query, in order. A host with a final dot is already absolute."""
        if host.endswith("."):
            return [host]
        searched = [f"{host}.{domain}." for domain in self.search]
        is_qualified = host.count(".") >= self.options.get("ndots", 1)
        return [f"{host}.", *searched] if is_qualified else [*searched, f"{host}."]


def stub_resolver_of(text: str, own_name: str) -> StubResolver:
    """Parse a resolv.conf. By default it means a local name server, and the domain of ``own_name``."""
    nameservers: list[str] = []
    search = [own_name.partition(".")[2]]
    options: dict[str, int] = {}
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if is_ip_address(address):
                nameservers.append(address)
            case ["search", *domains] | ["domain", *domains] if domains:
                search = domains
            case ["options", *words]:
                options.update(_options(words))
    return StubResolver(
        tuple(nameservers[:MOST_NAMESERVERS]) or ("127.0.0.1",),
        tuple(name for domain in search if (name := domain.strip("."))),
        options,
    )


def _options(words: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        name, _, value = word.partition(":")
        if name == "rotate":
            found[name] = 1
        elif name in _OPTION_LIMITS and _DECIMAL.fullmatch(value):
            least, most = _OPTION_LIMITS[name]
            found[name] = min(max(int(value), least), most)
    return found


def hosts_of(text: str) -> dict[str, tuple[str, ...]]:
    """Return the addresses in a hosts file, by name in lower case."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if names and is_ip_address(address):
            for name in map(str.lower, names):
                if address not in found.get(name, ()):
                    found[name] = (*found.get(name, ()), address)
    return found


def host_sources_of(text: str) -> tuple[str, ...]:
    """Return the sources of host names in an nsswitch.conf, in order; by default ``files`` and ``dns``."""
    for line in text.splitlines():
        database, _, sources = line.partition("#")[0].partition(":")
        if database.strip() == "hosts":
            return tuple(_NSS_ACTION.sub(" ", sources).split())
    return ("files", "dns")


class _Reread(Generic[T]):
    """The content of a file, read again when it changes; a missing or unreadable file counts as empty."""

    def __init__(self, path: Path, parse: Callable[[str], T]) -> None:
        self._path, self._parse = path, parse
        self._version: FileVersion | None = ()
        self._content: T

    def content(self) -> T:
        version = version_of(self._path)
        if version != self._version:
            self._version = version
            try:
                text = self._path.read_text("utf-8", "replace")
            except OSError as error:
                _log.info("%s cannot be read: %s", self._path, error.strerror or error)
                text = ""
            self._content = self._parse(text)
        return self._content


@dataclass
class ResolverFiles:
    """The files that configure the resolution of names."""

    hosts_path: Path = Path("/etc/hosts")
    resolv_conf_path: Path = Path("/etc/resolv.conf")
    nsswitch_path: Path = Path("/etc/nsswitch.conf")
    _hosts: _Reread[dict[str, tuple[str, ...]]] = field(init=False)
    _stub_resolver: _Reread[StubResolver] = field(init=False)
    _host_sources: _Reread[tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._hosts = _Reread(self.hosts_path, hosts_of)
        self._stub_resolver = _Reread(
            self.resolv_conf_path, lambda text: stub_resolver_of(text, socket.gethostname())
        )
        self._host_sources = _Reread(self.nsswitch_path, host_sources_of)

    @property
    def hosts(self) -> Mapping[str, tuple[str, ...]]:
        """Addresses by name, in lower case."""
        return self._hosts.content()

    @property
    def stub_resolver(self) -> StubResolver:
        """How to query DNS."""
        return self._stub_resolver.content()

    @property
    def host_sources(self) -> tuple[str, ...]:
        """The sources of host names."""
        return self._host_sources.content()


SYSTEM_FILES = ResolverFiles()
"""This machine's own files."""
