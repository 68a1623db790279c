"""The table ``defaults``: settings of every probe of a kind, and of every server and mailbox."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import Field, create_model

from monitor.config.hybrid import SHARED
from monitor.config.maintenance import WindowSettings
from probes.core.presets import preset_values
from probes.core.settings import MailboxSettings, ProbeSettings, ServerSettings, Settings
from probes.registry import KINDS

_OWN = frozenset({"name", "kind", "for_each"})
"""Settings that each entry has for itself."""

MODELS: Mapping[str, type[Settings]] = MappingProxyType(
    {
        "servers": ServerSettings,
        "mailboxes": MailboxSettings,
        "maintenance": WindowSettings,
        "probes": ProbeSettings,
        **{name: kind.settings_model for name, kind in KINDS.items()},
    }
)
"""What there are defaults for, with all settings of such an entry."""


def _optional(model: type[Settings], section: str) -> type[Settings]:
    """Return a model with the settings of ``model`` that can have a default here, none of them required."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        if key not in _OWN:
            optional = copy.copy(field)
            optional.default, optional.default_factory = None, None
            fields[key] = (field.annotation, optional)
    told = f"Defaults of {'every probe' if section == 'probes' else section}."
    return create_model(f"{model.__name__}Defaults", __base__=Settings, __doc__=told, **fields)


if TYPE_CHECKING:
    DefaultsSettings = Settings
else:
    DefaultsSettings = create_model(
        "DefaultsSettings",
        __base__=Settings,
        __module__=__name__,
        __doc__="Settings of entries that do not say otherwise.",
        **{
            section: (Annotated[_optional(model, section) | None, Field(default=None)], None)
            for section, model in MODELS.items()
        },
    )


def sections(table: str, entry: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return whose defaults an entry of ``table`` has, those that count most first."""
    kinds = {"probes": str(entry.get("kind")), "hybrid": "roundtrip"}
    return (kinds[table], "probes") if table in kinds else (table,)


def with_defaults(data: dict[str, Any], *parts: str) -> dict[str, Any]:
    """Return raw ``data`` with the entries of ``parts`` completed by its table ``defaults``.

    A setting of an entry replaces the default, except that mappings of names, such as ``labels``, and of
    further settings, such as ``alerts``, are completed key by key. An entry's preset replaces defaults too.
    To have no value in place of a default, an entry or such a mapping says ``null``.
    """
    defaults = data.get("defaults")
    if not isinstance(defaults, Mapping) or not defaults:
        return data
    found: dict[str, Any] = {}
    for part in parts:
        entries = data.get(part)
        if isinstance(entries, Mapping):
            found[part] = {name: completed(part, entry, defaults) for name, entry in entries.items()}
        elif isinstance(entries, list):
            found[part] = [completed(part, entry, defaults) for entry in entries]
    return {**data, **found}


def completed(part: str, entry: Any, defaults: Mapping[Any, Any]) -> Any:
    """Return the raw ``entry`` of ``part``, such as ``servers``, with the ``defaults`` that apply to it."""
    if not isinstance(entry, Mapping):
        return entry
    found = dict(entry)
    for section in sections(part, entry):
        own = defaults.get(section)
        if isinstance(own, Mapping) and section in MODELS:
            its = {key: own[key] for key in own if part != "hybrid" or key in SHARED}
            _complete(found, its, MODELS[section], preset_of(part, entry))
            for key in its:
                if key in entry and entry[key] is None:
                    found.pop(key, None)
    return found


def preset_of(table: str, entry: Mapping[Any, Any]) -> Mapping[str, object]:
    """Return the values of the preset that an entry itself chooses."""
    if table != "servers":
        return {}
    protocol = entry.get("protocol")
    return preset_values(entry.get("preset", "exchange-online" if protocol == "graph" else None), protocol)


def _complete(
    entry: dict[Any, Any], own: Mapping[Any, Any], model: type[Settings], preset: Mapping[str, object]
) -> None:
    for key, default in own.items():
        if key in preset or key in _OWN:
            continue
        if key not in entry:
            entry[key] = default
        elif isinstance(default, Mapping) and isinstance(entry[key], Mapping) and _is_table(model, key):
            written = entry[key]
            kept = {name: value for name, value in default.items() if name not in written}
            dropped = {name for name in default if name in written and written[name] is None}
            entry[key] = {**kept, **{name: value for name, value in written.items() if name not in dropped}}


@cache
def _is_table(model: type[Settings], key: str) -> bool:
    """Return whether a setting is a mapping of names, or of further settings."""
    field = next((field for name, field in model.model_fields.items() if key in {name, field.alias}), None)
    if field is None:
        return False
    possible = {field.annotation, *get_args(field.annotation)}
    return any(
        get_origin(each) in {dict, Mapping} or (isinstance(each, type) and issubclass(each, Settings))
        for each in possible
    )
