"""Files for name resolution on this machine are read as the C library reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.protocols.resolver_files import StubResolver, host_sources_of, hosts_of, stub_resolver_of
from tests.fakes.resolver_files import resolver_files


def test_hosts() -> None:
    """Names and aliases of every line count, in any case; invalid lines and comments do not."""
    text = (
        "127.0.0.1 localhost loopback  # and a comment\n"
        "# 192.0.2.9 mail.test\n"
        "nonsense mail.test\n"
        "192.0.2.1\tMail.TEST\tmail\n"
        "\n"
        "2001:db8::1 mail.test\n"
        "192.0.2.1 mail.test\n"
        "fe80::1%lo router.test\n"
        "192.0.2.7\n"
    )
    assert hosts_of(text) == {
        "localhost": ("127.0.0.1",),
        "loopback": ("127.0.0.1",),
        "mail.test": ("192.0.2.1", "2001:db8::1"),
        "mail": ("192.0.2.1",),
        "router.test": ("fe80::1%lo",),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", StubResolver(("127.0.0.1",), ("own.test",), {})),
        (
            "nameserver 192.0.2.1\nnameserver 2001:db8::1 # a comment\nnameserver dns.test\nnameserver\n",
            StubResolver(("192.0.2.1", "2001:db8::1"), ("own.test",), {}),
        ),
        (
            "nameserver 192.0.2.1\n" * 5 + "search a.test. b.test\n",
            StubResolver(("192.0.2.1",) * 3, ("a.test", "b.test"), {}),
        ),
        ("domain a.test\nsearch b.test\n", StubResolver(("127.0.0.1",), ("b.test",), {})),
        ("search b.test\ndomain a.test\n", StubResolver(("127.0.0.1",), ("a.test",), {})),
        ("search .\n", StubResolver(("127.0.0.1",), (), {})),
        (
            "options ndots:2 timeout:1 edns0\noptions attempts:99 rotate ndots:x\n",
            StubResolver(
                ("127.0.0.1",), ("own.test",), {"ndots": 2, "timeout": 1, "attempts": 5, "rotate": 1}
            ),
        ),
        ("; options ndots:2\n# search c.test\n\0\n", StubResolver(("127.0.0.1",), ("own.test",), {})),
    ],
)
def test_resolv_conf(text: str, expected: StubResolver) -> None:
    """Name servers, search list and options are used within the C library's limits; the rest is skipped."""
    assert stub_resolver_of(text, "host.own.test") == expected


@pytest.mark.parametrize(
    ("host", "ndots", "names"),
    [
        ("mail", 1, ["mail.a.test.", "mail.b.test.", "mail."]),
        ("mail.sub", 1, ["mail.sub.", "mail.sub.a.test.", "mail.sub.b.test."]),
        ("mail.sub", 2, ["mail.sub.a.test.", "mail.sub.b.test.", "mail.sub."]),
        ("mail", 0, ["mail.", "mail.a.test.", "mail.b.test."]),
        ("mail.", 1, ["mail."]),
    ],
)
def test_the_search_list(host: str, ndots: int, names: list[str]) -> None:
    """A name with fewer dots than `ndots` is searched first; one with a final dot is not searched."""
    assert StubResolver((), ("a.test", "b.test"), {"ndots": ndots}).names_for(host) == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("files", "dns")),
        ("passwd: files\nhosts:   files dns  # a comment\n", ("files", "dns")),
        (
            "hosts: files mdns4_minimal [NOTFOUND=return !UNAVAIL=continue] dns",
            ("files", "mdns4_minimal", "dns"),
        ),
        ("# hosts: ldap\nhosts:files\n", ("files",)),
    ],
)
def test_sources_of_host_names(text: str, expected: tuple[str, ...]) -> None:
    """The sources in nsswitch.conf are used in order, without the actions between them."""
    assert host_sources_of(text) == expected


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    """Changes by an administrator or VPN take effect at once, and a removed file is empty."""
    files = resolver_files(tmp_path, hosts="192.0.2.1 mail.test\n", resolv_conf="nameserver 192.0.2.53\n")
    assert files.hosts is files.hosts
    assert files.hosts == {"mail.test": ("192.0.2.1",)}
    assert files.stub_resolver.nameservers == ("192.0.2.53",)
    files.hosts_path.write_text("192.0.2.22 mail.test\n")
    files.resolv_conf_path.unlink()
    assert files.hosts == {"mail.test": ("192.0.2.22",)}
    assert files.stub_resolver.nameservers == ("127.0.0.1",)
