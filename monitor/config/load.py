"""Reading a configuration file: all its mistakes at once, each with line, key and remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from monitor.config.document import Document, Mistake, key_of, read_document
from monitor.config.mistakes import did_you_mean, mistakes_of
from monitor.config.models import Configuration
from probes.core.settings import MailboxSettings, Reference, Settings
from probes.registry import KINDS


class ConfigurationError(Exception):
    """The file cannot be used; ``mistakes`` has every reason, in the order of their lines."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda mistake: mistake.line)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def load(path: Path) -> Configuration:
    """Return the configuration in the YAML file ``path``; raises `ConfigurationError`, without secrets."""
    document = read_document(path)
    if isinstance(document, Mistake):
        raise ConfigurationError([document])
    mistakes = list(document.duplicates)
    mistakes += _unresolved_references(document)
    mistakes += _repeated_probe_names(document)
    mistakes += _insecure_mailboxes(document)
    mistakes += _reserved_server_names(document)
    try:
        configuration = Configuration.model_validate(document.data, context={"directory": path.parent})
    except ValidationError as error:
        mistakes += mistakes_of(error, document, Configuration)
    if mistakes:
        raise ConfigurationError(mistakes)
    return configuration


def _repeated_probe_names(document: Document) -> Iterator[Mistake]:
    first_line: dict[str, int] = {}
    for index, probe in enumerate(_items(document.data.get("probes"))):
        name = probe.get("name")
        if not isinstance(name, str):
            continue
        line = document.line_of(("probes", index, "name"))
        if name in first_line:
            yield Mistake(
                document.path,
                line,
                f"probes[{index}].name",
                f"the name {name!r} is taken by the probe in line {first_line[name]}; choose another",
            )
        first_line.setdefault(name, line)


def _reserved_server_names(document: Document) -> Iterator[Mistake]:
    servers = document.data.get("servers")
    if isinstance(servers, Mapping) and "mx" in servers:
        at = ("servers", "mx")
        yield Mistake(
            document.path,
            document.line_of(at),
            key_of(at),
            "the name 'mx' is taken: send_via: mx sends to the MX hosts of a domain; choose another",
        )


def _insecure_mailboxes(document: Document) -> Iterator[Mistake]:
    """Yield a mistake for each mailbox whose password would cross its server's connection in clear."""
    servers, mailboxes = document.data.get("servers"), document.data.get("mailboxes")
    if not isinstance(servers, Mapping) or not isinstance(mailboxes, Mapping):
        return
    for name, mailbox in mailboxes.items():
        server = servers.get(mailbox.get("server")) if isinstance(mailbox, Mapping) else None
        if (
            isinstance(server, Mapping)
            and server.get("tls") == "none"
            and server.get("allow_insecure_auth") is not True
        ):
            at = ("mailboxes", name, "server")
            yield Mistake(
                document.path,
                document.line_of(at),
                key_of(at),
                f"the password would cross the unencrypted connection of server {mailbox['server']!r}; "
                "give it tls: implicit or starttls, or accept that there with allow_insecure_auth: true",
            )


def _unresolved_references(document: Document) -> Iterator[Mistake]:
    """Check references on the raw data, so that they are reported beside mistakes of other kinds."""
    data = document.data
    for index, probe in enumerate(_items(data.get("probes"))):
        kind = KINDS.get(str(probe.get("kind")))
        if kind is not None:
            yield from _references(document, ("probes", index), probe, kind.settings_model)
    mailboxes = data.get("mailboxes")
    if isinstance(mailboxes, Mapping):
        for name, mailbox in mailboxes.items():
            if isinstance(mailbox, Mapping):
                yield from _references(document, ("mailboxes", name), mailbox, MailboxSettings)


def _references(
    document: Document, at: tuple[str | int, ...], entry: Mapping[str, object], model: type[Settings]
) -> Iterator[Mistake]:
    for key, field in model.model_fields.items():
        for reference in (mark for mark in _marks(field) if isinstance(mark, Reference)):
            value = entry.get(key)
            if isinstance(value, str) and (fault := _reference_fault(document.data, reference, value)):
                yield Mistake(document.path, document.line_of((*at, key)), key_of((*at, key)), fault)


def _marks(field: FieldInfo) -> Iterator[object]:
    """Yield what annotates a field, or one of the types that it may be."""
    yield from field.metadata
    for possible in get_args(field.annotation):
        yield from getattr(possible, "__metadata__", ())


def _reference_fault(data: Mapping[str, object], reference: Reference, value: str) -> str | None:
    if value in reference.besides:
        return None
    table = data.get(reference.table)
    entries = table if isinstance(table, Mapping) else {}
    if value not in entries:
        known = ", ".join(sorted(map(str, entries))) or "none"
        suggestion = did_you_mean(value, [*map(str, entries), *reference.besides])
        return f"{reference.table} has no entry {value!r}.{suggestion} It has: {known}"
    server = value if reference.table == "servers" else _entry(data, "mailboxes", value).get("server")
    protocol = _entry(data, "servers", server).get("protocol")
    if reference.protocols and isinstance(protocol, str) and protocol not in reference.protocols:
        wanted = " or ".join(sorted(reference.protocols))
        return f"server {server!r} speaks {protocol}; a server of protocol {wanted} is needed here"
    return None


def _entry(data: Mapping[str, object], table: str, name: object) -> Mapping[str, object]:
    """Return the raw entry ``name`` of a table; an empty mapping where there is no sound one."""
    entries = data.get(table)
    entry = entries.get(name) if isinstance(entries, Mapping) and isinstance(name, str) else None
    return entry if isinstance(entry, Mapping) else {}


def _items(value: object) -> list[Mapping[str, object]]:
    """Return the mappings of a raw list; positions of other items hold an empty mapping."""
    if not isinstance(value, list):
        return []
    return [item if isinstance(item, Mapping) else {} for item in value]
