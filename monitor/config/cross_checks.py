"""Checks that the parts of a configuration agree on the names that they use for each other.

The checks read plain mappings, so that they work on raw data as well as on a finished configuration.
Their time is proportional to the number of entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from monitor.config.capacity import overloads
from monitor.config.document import Location
from monitor.config.hybrid import HybridSide
from monitor.config.mistakes import did_you_mean
from probes.core.presets import CLOUD_OF_PRESET, preset_of_server, preset_values
from probes.core.settings import MailboxSettings, Reference, ServerSettings, Settings
from probes.registry import KINDS

NAMES_SHOWN = 20
"""Maximum number of names of a table in one message."""

COMPARISONS_LIMIT = 50_000
"""Maximum number of names to compare for suggestions in one configuration: about a second of work."""

Entry = Mapping[str, object]


def cross_errors(configuration: object) -> Iterator[InitErrorDetails]:
    """Yield an error for each disagreement within ``configuration``, a model or its raw data.

    Raw data may have other mistakes. Unreadable parts are skipped, because the models refuse them.
    """
    parts = _entry(configuration)
    servers, mailboxes = _table(parts.get("servers")), _table(parts.get("mailboxes"))
    probes = _probes(parts.get("probes"))
    oauth2, hybrid = _table(parts.get("oauth2")), _table(parts.get("hybrid"))
    names = _Names({"oauth2": oauth2, "servers": servers, "mailboxes": mailboxes})
    yield from _reference_errors(names, servers, mailboxes, probes)
    for name, entry in hybrid.items():
        for side in ("on_premises", "cloud"):
            yield from _errors_of_entry(names, ("hybrid", name, side), _entry(entry.get(side)), HybridSide)
        yield from _mixed_up_sides(name, entry, servers, mailboxes)
    yield from _repeated_names(probes)
    yield from _insecure_mailboxes(servers, mailboxes)
    yield from _graph_without_token(servers, mailboxes)
    yield from _tokens_for_others(servers, mailboxes, oauth2)
    enabled = {at: probe for at, probe in probes.items() if probe.get("enabled") is not False}
    for at, told in overloads(_entry(parts.get("agent")), servers, mailboxes, enabled):
        yield _error(at, told)
    if "mx" in servers:
        yield _error(
            ("servers", "mx"),
            "the name 'mx' is taken: send_via: mx sends to the MX hosts of a domain; choose another",
        )


def _reference_errors(
    names: _Names,
    servers: Mapping[str, Entry],
    mailboxes: Mapping[str, Entry],
    probes: Mapping[Location, Entry],
) -> Iterator[InitErrorDetails]:
    for at, probe in probes.items():
        kind = KINDS.get(str(probe.get("kind")))
        if kind is not None:
            yield from _errors_of_entry(names, at, probe, kind.settings_model)
    for name, server in servers.items():
        yield from _errors_of_entry(names, ("servers", name), server, ServerSettings)
    for name, mailbox in mailboxes.items():
        yield from _errors_of_entry(names, ("mailboxes", name), mailbox, MailboxSettings)


def _errors_of_entry(
    names: _Names, at: Location, entry: Entry, model: type[Settings]
) -> Iterator[InitErrorDetails]:
    for key, reference in _references(model):
        value = entry.get(key)
        if isinstance(value, str) and (fault := names.fault(reference, value)):
            yield _error((*at, key), fault)


def _repeated_names(probes: Mapping[Location, Entry]) -> Iterator[InitErrorDetails]:
    first: dict[str, Location] = {}
    for at, probe in probes.items():
        name = probe.get("name")
        if isinstance(name, str) and first.setdefault(name, at) != at:
            yield InitErrorDetails(
                type=PydanticCustomError(
                    "repeated_name",
                    "the name '{name}' is taken by probes[{index}]; choose another",
                    {"name": name, "index": first[name][1]},
                ),
                loc=(*at, "name"),
                input=None,
            )


def _insecure_mailboxes(
    servers: Mapping[str, Entry], mailboxes: Mapping[str, Entry]
) -> Iterator[InitErrorDetails]:
    """Yield an error for each mailbox whose password would be sent unencrypted."""
    for name, mailbox in mailboxes.items():
        server = servers.get(str(mailbox.get("server")), {})
        if server.get("tls") == "none" and server.get("allow_insecure_auth", False) is False:
            yield _error(
                ("mailboxes", name, "server"),
                f"the password would be sent unencrypted to server {mailbox['server']!r}; "
                "set tls: implicit or starttls there, or accept it with allow_insecure_auth: true",
            )


def _graph_without_token(
    servers: Mapping[str, Entry], mailboxes: Mapping[str, Entry]
) -> Iterator[InitErrorDetails]:
    """Yield an error for each mailbox that is read through Graph with a password."""
    for name, mailbox in mailboxes.items():
        server = servers.get(str(mailbox.get("server")), {})
        if server.get("protocol") == "graph" and mailbox.get("password") is not None:
            yield _error(
                ("mailboxes", name, "password"), "Graph takes access tokens only; set oauth2 in its place"
            )


def _tokens_for_others(
    servers: Mapping[str, Entry], mailboxes: Mapping[str, Entry], oauth2: Mapping[str, Entry]
) -> Iterator[InitErrorDetails]:
    """Yield an error for each server and mailbox whose tokens are for another provider or cloud."""
    for table, entries in (("servers", servers), ("mailboxes", mailboxes)):
        for name, entry in entries.items():
            server = entry if table == "servers" else servers.get(str(entry.get("server")), {})
            issuer = str(entry.get("oauth2"))
            if told := _mismatch(server, issuer, oauth2.get(issuer, {})):
                yield _error((table, name, "oauth2"), told)


def _mismatch(server: Entry, issuer: str, entry: Entry) -> str | None:
    """Return why a well-known server will not take the tokens of an entry of ``oauth2``, or None."""
    host, service = _service_of(server)
    cloud = CLOUD_OF_PRESET.get(service)
    provider = "microsoft" if cloud is not None else {"gmail": "google"}.get(service)
    own, own_cloud = entry.get("provider"), entry.get("cloud", "global")
    if provider is None or own not in {"microsoft", "google"}:
        return None
    if own != provider:
        return (
            f"{host} takes tokens of provider {provider}, and {issuer!r} has those of {own}; "
            "name another entry"
        )
    fitting = next((each for each, of in CLOUD_OF_PRESET.items() if of == own_cloud), None)
    if cloud is None or cloud == own_cloud or fitting is None:
        return None
    return (
        f"{host} is in cloud {cloud}, and the tokens of {issuer!r} are for {own_cloud}; "
        f"set cloud: {cloud} there, or preset: {fitting} for the server"
    )


def _service_of(server: Entry) -> tuple[str, str]:
    """Return a server's host, and the preset of the service that it belongs to; empty for its own."""
    named = server.get("preset")
    preset = str(named) if named is not None else ""
    host = str(server.get("host") or preset_values(preset, server.get("protocol")).get("host", ""))
    return host, preset_of_server(host, preset)


def _mixed_up_sides(
    name: str, entry: Entry, servers: Mapping[str, Entry], mailboxes: Mapping[str, Entry]
) -> Iterator[InitErrorDetails]:
    """Yield an error for what makes a way of ``hybrid`` pass no connector, or the wrong one."""
    at = ("hybrid", name)
    local, cloud = _entry(entry.get("on_premises")), _entry(entry.get("cloud"))
    boxes = [mailboxes.get(str(side.get("mailbox")), {}) for side in (local, cloud)]
    if str(local.get("server")) in servers and local.get("server") == cloud.get("server"):
        yield _error((*at, "cloud", "server"), "is the server on premises too; name that of the cloud")
    addresses = [str(box["address"]).lower() for box in boxes if "address" in box]
    if len(set(addresses)) < len(addresses):
        yield _error((*at, "cloud", "mailbox"), "is the mailbox on premises too; name one in the cloud")
    used = {"server": local.get("server"), "mailbox": boxes[0].get("server")}
    for key, its in used.items():
        server = servers.get(str(its), {})
        if server.get("protocol") == "graph" or _service_of(server)[1] in CLOUD_OF_PRESET:
            told = (
                f"server {its!r} is Exchange Online, which is not on premises; swap the sides, or correct it"
            )
            yield _error((*at, "on_premises", key), told)
    sender = _entry(entry.get("outside"))
    domain = str(sender.get("from") or "").rpartition("@")[2].lower()
    if domain and domain in {address.rpartition("@")[2] for address in addresses}:
        told = f"{domain} is your own domain, from which mail from outside is refused; choose another sender"
        yield _error((*at, "outside", "from"), told)


class _Names:
    """The names of each table's entries, and checks for references to them."""

    def __init__(self, tables: Mapping[str, Mapping[str, Entry]]) -> None:
        self._tables = tables
        self._listed = {table: _listed(entries) for table, entries in self._tables.items()}
        self._comparisons = 0

    def fault(self, reference: Reference, value: str) -> str | None:
        """Return why ``value`` is not a valid ``reference``, or None if it is."""
        if value in reference.other_values:
            return None
        entries = self._tables[reference.table]
        if value not in entries:
            self._comparisons += len(entries)
            is_cheap = self._comparisons <= COMPARISONS_LIMIT
            suggestion = did_you_mean(value, [*entries, *reference.other_values]) if is_cheap else ""
            return f"{reference.table} has no entry {value!r}.{suggestion} {self._listed[reference.table]}"
        if not reference.protocols:
            return None
        server = value if reference.table == "servers" else entries[value].get("server")
        protocol = self._tables["servers"].get(str(server), {}).get("protocol")
        if isinstance(protocol, str) and protocol not in reference.protocols:
            wanted = " or ".join(sorted(reference.protocols))
            return f"server {server!r} speaks {protocol}; a server with protocol {wanted} is needed here"
        return None


def _listed(entries: Mapping[str, Entry]) -> str:
    known = sorted(entries)
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    return f"Entries: {', '.join(known[:NAMES_SHOWN]) or 'none'}{more}"


@cache
def _references(model: type[Settings]) -> tuple[tuple[str, Reference], ...]:
    """Return the keys of ``model`` that refer to an entry elsewhere."""
    return tuple(
        (field.alias or key, mark)
        for key, field in model.model_fields.items()
        for mark in _marks(field)
        if isinstance(mark, Reference)
    )


def references_of(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the table and the name of each entry that ``settings`` refer to."""
    for key, reference in _references(type(settings)):
        value = getattr(settings, key, None)
        if isinstance(value, str) and value not in reference.other_values:
            yield reference.table, value


def _marks(field: FieldInfo) -> Iterator[object]:
    """Yield the annotations of a field and of its alternative types."""
    yield from field.metadata
    for possible in get_args(field.annotation):
        yield from getattr(possible, "__metadata__", ())


def init_errors(error: ValidationError) -> Iterator[InitErrorDetails]:
    """Yield the errors of ``error`` in a form that can be raised again, without their inputs."""
    for detail in error.errors(include_url=False, include_input=False):
        kind = PydanticCustomError(detail["type"], detail["msg"], detail.get("ctx"))
        yield InitErrorDetails(type=kind, loc=detail["loc"], input=None)


def _error(at: Location, text: str) -> InitErrorDetails:
    return InitErrorDetails(type="value_error", loc=at, input=None, ctx={"error": ValueError(text)})


def _probes(value: object) -> dict[Location, Entry]:
    """Return the probes by their location, which includes the kind, as in pydantic's own locations."""
    probes = map(_entry, value if isinstance(value, list | tuple) else ())
    return {
        ("probes", index, *({str(probe.get("kind"))} & KINDS.keys())): probe
        for index, probe in enumerate(probes)
    }


def _table(value: object) -> dict[str, Entry]:
    entries = value if isinstance(value, Mapping) else {}
    return {str(name): _entry(entry) for name, entry in entries.items()}


def _entry(value: object) -> Entry:
    """Return an entry's settings by key; empty if the entry is not a mapping."""
    if isinstance(value, BaseModel):
        return {field.alias or key: getattr(value, key) for key, field in type(value).model_fields.items()}
    return value if isinstance(value, Mapping) else {}
