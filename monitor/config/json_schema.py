"""The JSON Schema of a configuration file, for editors."""

from __future__ import annotations

from typing import Any

from monitor.config.models import Configuration

_OWN = ("name", "kind", "protocol")
"""Settings that an entry must have even where there are defaults."""

_PLACEHOLDER = r"\$\{[a-z_][a-z0-9_]*\}"


def configuration_schema() -> dict[str, Any]:
    """Return the schema of a file, as a person writes it.

    An entry may lack what `defaults` can have. One with `for_each` may have ``${NAME}`` in the place of any
    value, so only the keys of its settings are described.
    """
    schema = Configuration.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    for name, entry in list(definitions.items()):
        if "for_each" in entry.get("properties", {}):
            entry["required"] = [key for key in entry.get("required", []) if key in _OWN]
            entry.pop("anyOf", None)
            definitions[f"{name}Alone"] = {**entry, "properties": {**entry["properties"], "for_each": False}}
            definitions[name] = _either(name, entry)
    for table in ("servers", "mailboxes", "maintenance"):
        patterns = schema["properties"][table]["patternProperties"]
        (entry,) = patterns.values()
        patterns[_PLACEHOLDER] = entry
    probes = schema["properties"]["probes"]
    of_many_kinds = {"required": ["for_each"], "properties": {"kind": {"pattern": _PLACEHOLDER}}}
    probes["items"] = {"if": of_many_kinds, "then": {}, "else": probes["items"]}
    return schema


def _either(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    repeated = {
        key: {"description": setting["description"]} if "description" in setting else {}
        for key, setting in entry["properties"].items()
    }
    repeated |= {key: entry["properties"][key] for key in ("for_each", "kind") if key in repeated}
    return {
        "if": {"required": ["for_each"]},
        "then": {"properties": repeated, "additionalProperties": False},
        "else": {"$ref": f"#/$defs/{name}Alone"},
    }
