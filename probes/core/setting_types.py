"""Types of settings: durations, names, host names, addresses, files.

Their error messages are for administrators, who see them next to a file and line number.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from probes.core.regular_file import CERTIFICATES_LIMIT, require_regular

LABEL_LIMIT = 63
"""Maximum length of a host name's label, in octets (RFC 1035 section 2.3.4)."""

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
_UNIT_SECONDS = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
RESERVED_LABELS = frozenset(
    {
        *("job", "instance", "alertname", "alertstate", "le", "quantile", "window"),
        *("location", "probe", "kind", "target", "cadence", "severity", "description"),
        *("mailbox", "mailbox_server", "address", "outcome", "reason", "phase", "check", "state"),
        *("exchange_node", "exchange_directory"),
        *("pod", "container", "endpoint", "namespace", "service"),
        *("threshold", "shortage", "issue", "position", "method", "result", "version", "python"),
    }
)
"""Labels that a site cannot give to its probes: Prometheus sets them, or a metric or an alert has them."""
_LOCAL_PART = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}")
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}", re.IGNORECASE | re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9.])?|[0-9A-Fa-f:.]{2,45}")


class TextOfDirectory(str):
    """A text of a file in ``directory``, which it is relative to if it is a path."""

    __slots__ = ("directory",)
    directory: Path

    def __new__(cls, text: str, directory: Path) -> TextOfDirectory:
        """Return ``text`` with the directory of its file."""
        made = super().__new__(cls, text)
        made.directory = directory
        return made


class SourceError(ValueError):
    """The environment variable or file that a setting refers to cannot be used."""


def read_variable(name: str, remedy: str = "set it for mailsonde") -> str:
    """Return the value of an environment variable; raises `SourceError` with ``remedy`` if it is not set."""
    if name not in os.environ:
        raise SourceError(f"environment variable {name} is not set; {remedy}")
    return os.environ[name]


def _text_or_variable(value: object) -> object:
    """Return the environment variable's value if ``value`` is ``{env: NAME}``; otherwise ``value``."""
    if isinstance(value, Mapping) and set(value) == {"env"} and isinstance(name := value["env"], str):
        return read_variable(name)
    return value


class OrVariable:
    """Marks a text that may also be ``{env: NAME}``, for the value of an environment variable."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_text_or_variable, handler(source))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), reference_schema("env")]}


def reference_schema(source: str) -> JsonSchemaValue:
    """Return the JSON Schema of a reference such as ``{env: NAME}``."""
    return {
        "type": "object",
        "properties": {source: {"type": "string"}},
        "required": [source],
        "additionalProperties": False,
    }


def parse_duration(value: object) -> float:
    """Return a duration such as ``500ms``, ``30s``, ``5m`` or ``1d`` in seconds; raises ValueError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    raise ValueError(
        f"{value!r} is not a duration; write a number with its unit, such as 500ms, 30s, 5m, 1h or 1d"
    )


class ReadFiles(Protocol):
    """Notes the files that settings depend on, if it is ``sources`` in the context of a validation."""

    def note(self, path: Path) -> None:
        """Note a file whose content becomes part of the settings, before it is read."""

    def note_content(self, path: Path) -> None:
        """Note a file that is used by its path, so that its content is no part of the settings."""


def note_read(path: Path, info: ValidationInfo, *, by_path: bool = False) -> None:
    """Note that settings depend on the file ``path``, of which they contain the content, or only the path."""
    sources: ReadFiles | None = info.context.get("sources") if isinstance(info.context, dict) else None
    if sources is not None:
        (sources.note_content if by_path else sources.note)(path)


def relative_to_config(where: str, info: ValidationInfo) -> Path:
    """Return the path ``where``; a relative path is relative to the configuration file that it stands in.

    Raises ValueError for ``~`` or ``~NAME`` if that home directory is not known.
    """
    if isinstance(where, TextOfDirectory):
        directory = where.directory
    else:
        directory = info.context.get("directory", Path()) if isinstance(info.context, dict) else Path()
    try:
        return Path(directory) / Path(where).expanduser()
    except RuntimeError:
        raise ValueError(f"{where!r}: there is no such home directory; write the whole path") from None


def _certificate_file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("needs the path of a PEM file")
    path = relative_to_config(value, info)
    note_read(path, info, by_path=True)
    try:
        require_regular(path, CERTIFICATES_LIMIT)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"file {path} contains no PEM certificate") from None
    except OSError as error:
        raise ValueError(f"file {path} cannot be read: {error.strerror}") from None
    return path


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name; use up to 63 letters, digits, dots, dashes and underscores, "
            "starting with a letter or digit"
        )
    return value


def _label_name(value: str) -> str:
    if not _LABEL_NAME.fullmatch(value) or value.startswith("__"):
        raise ValueError(
            f"{value!r} is not the name of a label; use up to 63 letters, digits and underscores, starting "
            "with a letter or one underscore"
        )
    if value in RESERVED_LABELS:
        raise ValueError(f"the label {value!r} is mailsonde's or Prometheus' own; choose another name")
    return value


def _server_name(value: str) -> str:
    if not SERVER_NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name of a server; use up to 63 letters, digits, dots, dashes, underscores "
            "and @, starting with a letter or digit"
        )
    return value


def _line(value: str) -> str:
    if not 1 <= len(value) <= 255 or not value.isprintable():
        raise ValueError("must be one line of 1 to 255 printable characters")
    return value


def _email_address(value: str) -> str:
    local_part, _, domain = value.partition("@")
    if not _LOCAL_PART.fullmatch(local_part) or ".." in local_part or not is_host_name(domain):
        raise ValueError(f"{value!r} is not an e-mail address such as canary@example.com")
    return value


def is_host_name(text: str) -> bool:
    """Return whether ``text`` is a host name by RFC 5321 section 2.3.5 and RFC 1123 section 2.1.

    IP literals, names with underscores and names with an all-numeric last label are not host names.
    """
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


@lru_cache(maxsize=10_000)
def is_ip_address(text: str) -> bool:
    """Return whether ``text`` is an IPv4 or IPv6 address, with a zone (RFC 4007 section 11) or without.

    Cached, because every connection asks for the same few hosts.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host_name(value: str) -> str:
    labels = value.removesuffix(".").split(".")
    is_sound = _HOST.fullmatch(value) and "" not in labels and max(map(len, labels)) <= LABEL_LIMIT
    last = labels[-1]
    looks_like_address = ":" in value or (last.isascii() and last.isdecimal())  # RFC 3696 section 2
    if not is_sound or (looks_like_address and not is_ip_address(value)):
        raise ValueError(f"{value!r} is not a host name or IP address")
    return value


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,6})?(ms|s|m|h|d)$", "examples": ["30s", "5m"]}
    ),
]
"""Seconds, written with a unit."""


def between(low: float, high: float) -> AfterValidator:
    """Return a validator that refuses durations outside ``low`` to ``high`` seconds."""

    def check(seconds: float) -> float:
        if not low <= seconds <= high:
            raise ValueError(f"must be from {low:g}s to {high:g}s")
        return seconds

    return AfterValidator(check)


Name = Annotated[
    str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})
]
"""A name safe in labels, links and tokens: letters, digits, dot, dash, underscore; up to 63 characters."""

LabelName = Annotated[
    str,
    AfterValidator(_label_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_LABEL_NAME.pattern}$"}),
]
"""The name of a label, as Prometheus allows it, that mailsonde and Prometheus do not use themselves."""

ServerName = Annotated[
    str,
    AfterValidator(_server_name),
    WithJsonSchema({"type": "string", "pattern": f"^{SERVER_NAME.pattern}$"}),
]
"""A name that may also contain ``@``, such as ``imap@mail.example.com``; otherwise like `Name`."""

EmailAddress = Annotated[str, AfterValidator(_email_address), OrVariable()]
HostName = Annotated[str, AfterValidator(_host_name), OrVariable()]
CertificateFile = Annotated[Path, BeforeValidator(_certificate_file), WithJsonSchema({"type": "string"})]
"""A PEM file of certificates to trust."""
Line = Annotated[str, AfterValidator(_line), OrVariable()]
"""Text for a protocol line: 1 to 255 printable characters, including spaces."""
AddressFamily = Literal["any", "ipv4", "ipv6"]
"""Which addresses of a host name count: those of its A records, of its AAAA records, or both."""
FolderName = Line
"""An IMAP folder's name as people write it, with the server's separator between its levels."""

SiteLabels = Annotated[dict[LabelName, Line], Field(max_length=20)]
"""Labels that a site gives to its probes."""

ForEach = Annotated[
    None,
    Field(
        description=(
            "Makes an entry for each item, or for each combination of several variables, such as "
            "`{domain: [a.example, b.example]}` or `{domain: {file: domains.txt}}`, with one item per line. "
            "`${domain}` in its texts and its name is the item."
        )
    ),
    WithJsonSchema(
        {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[a-z_][a-z0-9_]{0,62}$"},
            "additionalProperties": {
                "anyOf": [
                    {"type": "array", "minItems": 1, "items": {"type": ["string", "integer"]}},
                    reference_schema("file"),
                ]
            },
        }
    ),
]
"""Variables with their items. Entries are written out before they are validated, so its value is None."""
