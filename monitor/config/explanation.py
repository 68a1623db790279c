"""What short forms amount to: settings and where they come from, and entries that are not written out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import yaml
from pydantic import SecretStr

from monitor.config.composition import Composition, compose
from monitor.config.defaults import completed, preset_of
from monitor.config.document import Location
from monitor.config.hybrid import hybrid_probes
from monitor.config.models import Configuration
from monitor.config.selection import chosen, labelled
from probes.core.presets import preset_values
from probes.core.settings import ServerSettings

if TYPE_CHECKING or not yaml.__with_libyaml__:
    from yaml import SafeDumper
else:
    from yaml import CSafeDumper as SafeDumper  # several times as fast

_SECONDS = frozenset({"timeout"})


class _Dumper(SafeDumper):
    """Also writes the texts of included files, which know their directory."""


_Dumper.add_multi_representer(str, SafeDumper.represent_str)


def explained(configuration: Configuration, path: Path) -> Iterator[str]:
    """Yield the lines of an explanation of the configuration that was read from ``path``."""
    composition = compose(path)
    data = composition.data
    for name, server in configuration.servers.items():
        yield f"servers.{name}:{_origin(composition, ('servers', name))}"
        preset = preset_values(server.preset, server.protocol)
        own_preset = preset_of("servers", data["servers"][name])
        for key in ServerSettings.model_fields:
            if key == "for_each":
                continue
            value = getattr(server, key)
            place = composition.place(("servers", name, key))
            if composition.has(("servers", name, key)):
                source = "this file" if place.path == path else str(place.path)
            elif place.location[0] == "defaults" and key not in own_preset:
                source = "defaults"
            elif key in preset:
                source = f"preset {server.preset}"
            elif value in (None, {}):
                continue
            else:
                source = "default"
            yield f"  {key + ':':22} {_shown(key, value):32} # {source}"
    for name, mailbox in configuration.mailboxes.items():
        if "username" not in mailbox.model_fields_set:
            yield f"mailboxes.{name}:"
            yield f"  {'username:':22} {mailbox.username:32} # default"
    yield from _windows(configuration, composition)
    yield from _written_out(composition)
    entry = None
    for probe in hybrid_probes(data):
        if probe.entry != entry:
            entry = probe.entry
            yield f"hybrid.{entry}:"
        yield f"  - {_flow(completed('probes', probe.settings, data.get('defaults', {})))}"


def _windows(configuration: Configuration, composition: Composition) -> Iterator[str]:
    """Yield each maintenance window, with the next time that it begins, and its probes."""
    names = labelled(configuration.enabled_probes, configuration.site)
    now = time.time()
    for name, window in configuration.maintenance.items():
        count = len(chosen(names, window.choice))
        yield f"maintenance.{name}:{_origin(composition, ('maintenance', name))}"
        period = window.latest(now)
        if period is not None and now < period[1]:
            when, shown = "now", f"until {_local(period[1], window.timezone)}"
        elif (period := window.next(now)) is not None:
            when, shown = (
                "next",
                f"{_local(period[0], window.timezone)} to {_local(period[1], window.timezone)}",
            )
        else:
            when, shown = "next", "never; it is over"
        yield f"  {when + ':':22} {shown}, {count} probe{'' if count == 1 else 's'}"


def _local(moment: float, zone: str) -> str:
    return f"{datetime.fromtimestamp(moment, ZoneInfo(zone)):%Y-%m-%d %H:%M %Z}"


def _written_out(composition: Composition) -> Iterator[str]:
    """Yield the mailboxes and probes that come from a ``for_each`` or have defaults, with their settings."""
    defaults = composition.data.get("defaults", {})
    for part in ("mailboxes", "probes"):
        entries = composition.data.get(part, {})
        for key, written in entries.items() if isinstance(entries, dict) else enumerate(entries):
            settings = completed(part, written, defaults)
            origin = _origin(composition, (part, key))
            if origin or settings != written:
                yield f"{part}.{key if part == 'mailboxes' else settings['name']}:{origin}"
                yield f"  {_flow(settings)}"


def _origin(composition: Composition, location: Location) -> str:
    """Return a comment that says which ``for_each`` makes an entry; empty if none does."""
    place = composition.place(location)
    return f" # {place.path}:{place.line}, {place.item}" if place.item else ""


def _flow(settings: Mapping[str, Any]) -> str:
    text: str = yaml.dump(settings, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=10**6)
    return text.rstrip()


def _shown(key: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return "(a secret)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}s" if key in _SECONDS else f"{value:g}"
    return str(value)
