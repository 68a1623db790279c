"""What short forms amount to: settings and where they come from, and the probes of ``hybrid``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import SecretStr

from monitor.config.document import Document, read_document
from monitor.config.hybrid import hybrid_probes
from monitor.config.models import Configuration
from probes.core.presets import preset_values
from probes.core.settings import ServerSettings

_SECONDS = frozenset({"timeout"})


def explained(configuration: Configuration, path: Path) -> Iterator[str]:
    """Yield the lines of an explanation of the configuration that was read from ``path``."""
    document = read_document(path)
    data = document.data if isinstance(document, Document) else {}
    written = data.get("servers", {})
    for name, server in configuration.servers.items():
        yield f"servers.{name}:"
        preset = preset_values(server.preset, server.protocol)
        for key, field in ServerSettings.model_fields.items():
            value = getattr(server, key)
            if key in written.get(name, {}):
                source = "this file"
            elif key in preset:
                source = f"preset {server.preset}"
            elif value == field.default and value is None:
                continue
            else:
                source = "default"
            yield f"  {key + ':':22} {_shown(key, value):32} # {source}"
    for name, mailbox in configuration.mailboxes.items():
        if "username" not in mailbox.model_fields_set:
            yield f"mailboxes.{name}:"
            yield f"  {'username:':22} {mailbox.username:32} # default"
    entry = None
    for probe in hybrid_probes(data):
        if probe.entry != entry:
            entry = probe.entry
            yield f"hybrid.{entry}:"
        settings = yaml.safe_dump(probe.settings, default_flow_style=True, sort_keys=False, width=10**6)
        yield f"  - {settings.rstrip()}"


def _shown(key: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return "(a secret)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}s" if key in _SECONDS else f"{value:g}"
    return str(value)
