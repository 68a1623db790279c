"""The parts of a configuration must agree, however the configuration is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from monitor.config.cross_checks import COMPARISONS_LIMIT, NAMES_SHOWN, cross_errors
from monitor.config.models import Configuration
from probes.core.settings import MailboxSettings, ServerSettings
from probes.registry import KINDS

IN_CLEAR = (
    "the password would be sent unencrypted to server 'pop'; "
    "set tls: implicit or starttls there, or accept it with allow_insecure_auth: true"
)
MISTAKES = {
    "unknown server": (
        ("probes", 1, "server", "outt"),
        ("probes", 1, "smtp", "server"),
        "servers has no entry 'outt'. Did you mean 'out'? Entries: out, pop",
    ),
    "unknown mailbox": (
        ("probes", 0, "to", "nobody"),
        ("probes", 0, "roundtrip", "to"),
        "mailboxes has no entry 'nobody'. Entries: canary",
    ),
    "mailbox on an unknown server": (
        ("mailboxes", "canary", "server", "pip"),
        ("mailboxes", "canary", "server"),
        "servers has no entry 'pip'. Did you mean 'pop'? Entries: out, pop",
    ),
    "server of the wrong protocol": (
        ("probes", 0, "send_via", "pop"),
        ("probes", 0, "roundtrip", "send_via"),
        "server 'pop' speaks pop3; a server with protocol graph or smtp is needed here",
    ),
    "mailbox of the wrong protocol": (
        ("mailboxes", "canary", "server", "out"),
        ("mailboxes", "canary", "server"),
        "server 'out' speaks smtp; a server with protocol graph or imap or pop3 is needed here",
    ),
    "repeated name": (
        ("probes", 1, "name", "trip"),
        ("probes", 1, "smtp", "name"),
        "the name 'trip' is taken by probes[0]; choose another",
    ),
    "password in clear": (("servers", "pop", "tls", "none"), ("mailboxes", "canary", "server"), IN_CLEAR),
    "server named mx": (
        ("servers", "mx", {"protocol": "smtp", "host": "mail.example.com", "tls": "starttls"}),
        ("servers", "mx"),
        "the name 'mx' is taken: send_via: mx sends to the MX hosts of a domain; choose another",
    ),
}


def written(*change: Any) -> dict[str, Any]:
    """Return the data of a valid configuration; ``change`` has a path in it and the new value."""
    data: dict[str, Any] = {
        "servers": {
            "out": {"protocol": "smtp", "host": "mail.example.com", "tls": "starttls"},
            "pop": {"protocol": "pop3", "host": "mail.example.com", "tls": "implicit"},
        },
        "mailboxes": {
            "canary": {
                "address": "canary@example.com",
                "server": "pop",
                "username": "canary",
                "password": {"env": "TEST_SECRET"},
            }
        },
        "probes": [
            {
                "name": "trip",
                "kind": "roundtrip",
                "from": "canary@example.com",
                "send_via": "out",
                "to": "canary",
            },
            {"name": "smtp", "kind": "smtp", "server": "out"},
        ],
    }
    if change:
        *path, key, value = change
        entry: Any = data
        for part in path:
            entry = entry[part]
        entry[key] = value
    return data


def from_models(data: dict[str, Any]) -> Configuration:
    """Make each part separately, as Python code without a file does."""
    return Configuration(
        servers=TypeAdapter(dict[str, ServerSettings]).validate_python(data["servers"]),
        mailboxes=TypeAdapter(dict[str, MailboxSettings]).validate_python(data["mailboxes"]),
        probes=tuple(KINDS[probe["kind"]].settings_model.model_validate(probe) for probe in data["probes"]),
    )


def from_a_generator(data: dict[str, Any]) -> Configuration:
    """Pass probes that can be iterated only once."""
    return Configuration.model_validate({**data, "probes": (probe for probe in data["probes"])})


ROADS = [Configuration.model_validate, from_models, from_a_generator]


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", "s3cret-of-the-test")


@pytest.mark.parametrize("make", ROADS)
def test_agreement_is_accepted(make: Callable[[dict[str, Any]], Configuration]) -> None:
    """A consistent configuration can be made in each of the ways of the next test."""
    assert [probe.name for probe in make(written()).probes] == ["trip", "smtp"]


@pytest.mark.parametrize("make", ROADS)
@pytest.mark.parametrize(("change", "place", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_disagreement_is_refused(
    make: Callable[[dict[str, Any]], Configuration],
    change: tuple[Any, ...],
    place: tuple[Any, ...],
    told: str,
) -> None:
    """However it is made, inconsistent parts are refused with their place and the remedy."""
    with pytest.raises(ValidationError) as caught:
        make(written(*change))
    errors = caught.value.errors()
    assert [(error["loc"], error["msg"].removeprefix("Value error, ")) for error in errors] == [(place, told)]


def test_all_is_told_at_once() -> None:
    """A mistake within a part hides no inconsistency of this or other parts."""
    data = written("servers", "pop", "tls", "perhaps")
    data["probes"][0] |= {"to": "nobody", "deadline": "soon"}
    data["probes"][1] |= {"server": "pop", "name": "trip", "kind": "smpt"}
    with pytest.raises(ValidationError) as caught:
        Configuration.model_validate(data)
    assert {error["loc"] for error in caught.value.errors()} == {
        ("servers", "pop", "tls"),
        ("probes", 0, "roundtrip", "to"),
        ("probes", 0, "roundtrip", "deadline"),
        ("probes", 1, "name"),
        ("probes", 1),
    }


def test_what_may_be_sound_is_not_refused_twice() -> None:
    """In a file with mistakes, a valid setting in an unusual form is not reported."""
    data = written("servers", "pop", "tls", "none")
    data["servers"]["pop"]["allow_insecure_auth"] = "yes"
    assert Configuration.model_validate(data).servers["pop"].allow_insecure_auth
    data["probes"][1]["interval"] = "soon"
    with pytest.raises(ValidationError) as caught:
        Configuration.model_validate(data)
    assert not [error for error in caught.value.errors() if error["loc"][0] == "mailboxes"]


def test_no_secret_is_in_the_error() -> None:
    """The error has neither the input nor its secrets."""
    with pytest.raises(ValidationError) as caught:
        Configuration.model_validate(written("probes", 1, "server", "outt") | {"token_kye": "hunter2"})
    told = f"{caught.value} {caught.value.errors()}"
    assert "token_kye" in told
    assert "hunter2" not in told
    assert "s3cret" not in told


def test_thousands_of_disagreements_stay_bounded() -> None:
    """With thousands of names, a mistake lists a few, and only the first have a suggestion.

    Otherwise, time and memory would grow with the square of the number of names.
    """
    count = 3000
    server = {"protocol": "smtp", "host": "mail.example.com", "tls": "starttls"}
    data = {
        "servers": {f"out-{n:04}": server for n in range(count)},
        "probes": [{"name": f"p{n}", "kind": "smtp", "server": f"out-{n:04}x"} for n in range(count)],
    }
    with pytest.raises(ValidationError) as caught:
        Configuration.model_validate(data)
    texts = [error["msg"] for error in caught.value.errors()]
    assert len(texts) == count
    assert texts[0].endswith(f"out-{NAMES_SHOWN - 1:04} and {count - NAMES_SHOWN} more")
    assert sum("Did you mean 'out-" in text for text in texts) == COMPARISONS_LIMIT // count


def many_mailboxes(protocol: str, **limits: object) -> list[str]:
    """Return the errors of a site with 10,000 mailboxes, each with a message a minute."""
    data = written()
    data["agent"] = {"max_connections": limits.pop("max_connections", None)}
    data["servers"]["pop"] |= {"protocol": protocol, **limits}
    data["mailboxes"] = {f"box-{n}": {"server": "pop"} for n in range(10_000)}
    data["probes"] = [
        {"kind": "roundtrip", "name": name, "to": name, "interval": "60s"} for name in data["mailboxes"]
    ]
    return [
        f"{'.'.join(map(str, error['loc']))}: {error['ctx']['error']}"
        for error in cross_errors(data)
        if error["loc"][-1] in {"max_connections", "logins_per_minute"}
    ]


@pytest.mark.parametrize(
    ("protocol", "limits", "errors"),
    [
        (
            "imap",
            {"logins_per_minute": 120},
            [
                "agent.max_connections: each of the 10000 watched IMAP or Graph mailboxes keeps a connection "
                "open, and by default there are at most 5000; set at least 10001, and allow the agent 3 "
                "times as many open files",
                "servers.pop.logins_per_minute: the first logins to its 10000 mailboxes take 83 min at 120 a "
                "minute; set at least 667",
            ],
        ),
        ("imap", {"logins_per_minute": 667, "max_connections": 10_001}, []),
        (
            "pop3",
            {},
            [
                "servers.pop.logins_per_minute: its 10000 mailboxes need 10000 logins a minute, each one in "
                "every interval of its probes or every 2 s, and 120 are allowed; set at least 10000, use "
                "longer intervals, or read them by IMAP"
            ],
        ),
        ("pop3", {"logins_per_minute": 10_000}, []),
    ],
)
def test_limits_that_make_the_load_impossible(
    protocol: str, limits: dict[str, object], errors: list[str]
) -> None:
    """A configuration that a limit makes impossible is refused, with the arithmetic."""
    assert many_mailboxes(protocol, **limits) == errors
