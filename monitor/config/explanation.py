"""Where each setting of a server comes from: the file, its preset, or mailsonde's default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from monitor.config.document import Document, read_document
from monitor.config.models import Configuration
from probes.core.presets import preset_values
from probes.core.settings import ServerSettings

_SECONDS = frozenset({"timeout"})


def explained(configuration: Configuration, path: Path) -> Iterator[str]:
    """Yield the lines of an explanation of the servers in the configuration that was read from ``path``."""
    document = read_document(path)
    written = document.data.get("servers", {}) if isinstance(document, Document) else {}
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


def _shown(key: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return "(a secret)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}s" if key in _SECONDS else f"{value:g}"
    return str(value)
