"""The configuration that `mailsonde init` writes: each setting with a short explanation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import yaml

from monitor.init.endpoint import Endpoint, preset_endpoint
from probes.core.setting_types import SERVER_NAME
from probes.protocols.dns import ResolverSettings

MAILBOX = "canary"
"""The name of the mailbox."""

_COMMENT_COLUMN = 46

Reference = Mapping[str, str]
"""Where a secret is: ``{env: NAME}`` or ``{file: PATH}``, never the secret itself."""

Setting = tuple[str, object, str]
"""Key, value and comment."""


@dataclass(frozen=True, slots=True)
class OAuth2Entry:
    """An entry of ``oauth2``."""

    name: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of the file. ``credentials`` are a password, or tokens."""

    address: str
    username: str
    credentials: Reference | OAuth2Entry
    submission: Endpoint
    incoming: Endpoint
    domain: str
    location: str
    listen: str
    ledger: str
    tls_ca: Path | None = None
    resolver: ResolverSettings | None = None


def ledger_url(path: Path) -> str:
    """Return the URL of a ledger in the file ``path``."""
    return f"sqlite://{quote(str(path.absolute()))}"


def written(plan: Plan) -> str:
    """Return the text of the configuration file for ``plan``."""
    lines = [
        f"# mailsonde watches the mail of {plan.domain} with the account {plan.address}.",
        "# mailsonde validate checks this file; config/example.yaml shows every setting.",
        "",
        "agent:",
        *_settings(
            "  ",
            ("location", plan.location, "where the agent runs; part of every result"),
            ("listen", plan.listen, "address of /metrics and the live page"),
            ("# web_config", "web.yml", "TLS and users, if other machines may connect"),
            ("ledger", plan.ledger, "the database of messages and results"),
        ),
        "",
        *_oauth2(plan),
        "servers:",
        *_server(plan.submission, plan, credentials=True),
        *([] if plan.incoming == plan.submission else _server(plan.incoming, plan, credentials=False)),
        "",
        "mailboxes:",
        f"  {MAILBOX}:",
        *_settings(
            "    ",
            ("address", plan.address, "where test messages arrive"),
            ("server", _name(plan.incoming), "the server of this mailbox"),
            *_credentials(plan, plan.incoming),
        ),
        "",
        "probes:",
        *_probes(plan),
    ]
    return "\n".join(lines) + "\n"


def _name(endpoint: Endpoint) -> str:
    """Return what alerts call the server: ``imap@mail.example.com``, or what it is for if that is no name."""
    purpose = "submission" if endpoint.protocol == "smtp" else endpoint.protocol
    name = f"{purpose}@{endpoint.host}"
    return name if SERVER_NAME.fullmatch(name) else purpose


def _oauth2(plan: Plan) -> list[str]:
    if not isinstance(plan.credentials, OAuth2Entry):
        return []
    settings = list(plan.credentials.settings)
    if plan.tls_ca is not None:
        settings.append(("tls_ca", str(plan.tls_ca), "a CA to trust in addition to the system's"))
    return ["oauth2:", f"  {plan.credentials.name}:", *_settings("    ", *settings), ""]


_PURPOSES = MappingProxyType({"smtp": "to submit mail", "graph": "to submit and read mail"})


def _server(endpoint: Endpoint, plan: Plan, *, credentials: bool) -> list[str]:
    settings: list[Setting] = [
        ("protocol", endpoint.protocol, _PURPOSES.get(endpoint.protocol, "to read mail")),
        *_place(endpoint),
    ]
    if plan.tls_ca is not None and endpoint.tls != "none":
        settings.append(("tls_ca", str(plan.tls_ca), "the CA to trust instead of the system's"))
    if endpoint.tls == "none":
        settings.append(("allow_insecure_auth", True, "the password is sent unencrypted"))
    if credentials:
        settings += _credentials(plan, endpoint)
    return [f"  {_name(endpoint)}:", *_settings("    ", *settings)]


def _place(endpoint: Endpoint) -> list[Setting]:
    """Return host, port and TLS, or the preset and what differs from it."""
    place: list[Setting] = [
        ("host", endpoint.host, "its name, which must be in its certificate"),
        ("port", endpoint.port, "the TCP port"),
        ("tls", endpoint.tls, "implicit: TLS from the start; starttls: upgrade to TLS; none: unencrypted"),
    ]
    if endpoint.preset is None:
        return place
    usual = preset_endpoint(endpoint.preset, endpoint.protocol)
    return [
        ("preset", endpoint.preset, "its host, port, TLS and limits; validate --explain shows them"),
        *(setting for setting in place if setting[1] != getattr(usual, setting[0])),
    ]


def _credentials(plan: Plan, endpoint: Endpoint) -> list[Setting]:
    username = ("username", plan.username, "the login name")
    if not isinstance(plan.credentials, OAuth2Entry):
        return [username, ("password", dict(plan.credentials), "where to read the password")]
    tokens = ("oauth2", plan.credentials.name, "the entry above, for tokens in place of a password")
    is_implied = endpoint.protocol == "graph" and plan.username == plan.address
    return [tokens] if is_implied else [username, tokens]


def _probes(plan: Plan) -> list[str]:
    mx: list[Setting] = [
        ("name", "mx", "are the domain's MX records correct?"),
        ("kind", "mx", "queries DNS only"),
        ("interval", "5m", "time between two runs"),
        ("domain", plan.domain, "the domain to check"),
    ]
    if plan.resolver is not None:
        where = {"address": plan.resolver.address, "port": plan.resolver.port}
        mx.append(("resolver", where, "the resolver to ask"))
    probes: list[list[Setting]] = [
        [
            ("name", "roundtrip", "does a message arrive, and how fast?"),
            ("kind", "roundtrip", "sends a message and watches for it"),
            ("interval", "60s", "time between two messages"),
            ("deadline", "5m", "a message that takes longer is lost"),
            ("from", plan.address, "the envelope sender"),
            ("send_via", _name(plan.submission), "the server to submit to"),
            ("to", MAILBOX, "the mailbox where it must arrive"),
        ],
        *_login_probes(plan),
        mx,
    ]
    lines: list[str] = []
    for settings in probes:
        first, *others = _settings("    ", *settings)
        lines += [f"  - {first.removeprefix('    ')}", *others]
    return lines


def _login_probes(plan: Plan) -> list[list[Setting]]:
    """Return a probe for each server that has a kind of its own, which Graph does not."""
    kind = plan.incoming.protocol
    if kind == "graph":
        return []
    return [
        [
            ("name", "submission", "does the server accept mail?"),
            ("kind", "smtp", "connects, encrypts, logs in; sends nothing"),
            ("interval", "60s", "time between two runs"),
            ("server", _name(plan.submission), "the server to check"),
        ],
        [
            ("name", kind, "can the mailbox be opened?"),
            ("kind", kind, "connects, encrypts, logs in; reads nothing"),
            ("interval", "60s", "time between two runs"),
            ("mailbox", MAILBOX, "the mailbox to open"),
        ],
    ]


def _settings(indent: str, *settings: Setting) -> Iterable[str]:
    """Yield ``key: value`` lines with aligned comments."""
    for key, value, comment in settings:
        setting = f"{indent}{key}: {_scalar(value)}"
        yield f"{setting:<{_COMMENT_COLUMN}}  # {comment}"


def _scalar(value: object) -> str:
    """Return a value as YAML on one line, quoted if necessary."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


class Files:
    """New files, none of which may exist before; `discard` removes what was written."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def write(self, path: Path, text: str, mode: int) -> None:
        """Write a file that does not exist yet, with permissions ``mode``; raises OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        self._made.append(path)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Remove the files that were written."""
        for path in self._made:
            path.unlink(missing_ok=True)
