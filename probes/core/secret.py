"""Secrets of a configuration: read from the environment or a file, and never shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, SecretStr, ValidationInfo, WithJsonSchema

from probes.core.regular_file import read_regular
from probes.core.setting_types import (
    SourceError,
    note_read,
    read_variable,
    reference_schema,
    relative_to_config,
)

SECRET_LIMIT = 4096
"""Maximum size of a password file, in bytes."""

NOT_READ = "not read"
"""The value of every secret in a configuration that was read without secrets."""


class BearerToken(SecretStr):
    """An OAuth2 access token (RFC 6750), used in place of a password.

    ``refuse`` is called when a server refuses the token, so that it is not used for ever.
    """

    def __init__(self, token: str, refuse: Callable[[], None] = lambda: None) -> None:
        super().__init__(token)
        self.refuse = refuse


class SecretError(SourceError):
    """The secret that a setting refers to cannot be used."""


def read_secret(value: object, info: ValidationInfo) -> SecretStr:
    """Return the secret that ``{env: NAME}`` or ``{file: PATH}`` refers to; no error shows its content.

    With ``secrets`` false in the context of ``info``, the reference is checked and nothing is read.
    """
    if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= {"env", "file"}:
        raise ValueError("secrets are never written in this file; write {env: NAME} or {file: PATH}")
    ((source, where),) = value.items()
    if not isinstance(where, str) or not where:
        raise ValueError(f"{source}: needs a text; write {{env: NAME}} or {{file: PATH}}")
    if isinstance(info.context, dict) and not info.context.get("secrets", True):
        return SecretStr(NOT_READ)
    try:
        if source == "env":
            secret = read_variable(where, "set it, or use {file: PATH}")
        else:
            secret = _secret_of_file(where, info)
        return sound_secret(secret, f"the secret in {source} {where}")
    except ValueError as error:
        raise SecretError(str(error)) from None


def sound_secret(text: str, named: str) -> SecretStr:
    """Return ``text`` as a secret; if no protocol can send it, raise ValueError, which calls it ``named``."""
    if not text or any(c in text for c in "\r\n\0"):
        raise ValueError(f"{named} is empty or has line breaks; it must be one line of text")
    if any("\ud800" <= c <= "\udfff" for c in text):  # surrogates: octets that are not UTF-8
        raise ValueError(f"{named} is not UTF-8 text; write it in UTF-8, or choose another")
    return SecretStr(text)


def read_at_most(path: Path, limit: int, named: str) -> bytes:
    """Return a file's content of at most ``limit`` bytes.

    Raises ValueError, which calls the file ``named``.
    """
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise ValueError(f"{named} {path} cannot be read: {error.strerror}") from None


def _secret_of_file(where: str, info: ValidationInfo) -> str:
    path = relative_to_config(where, info)
    note_read(path, info)
    raw = read_at_most(path, SECRET_LIMIT, "secret file")
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"secret file {path} is not UTF-8 text") from None


Secret = Annotated[
    SecretStr,
    BeforeValidator(read_secret),
    WithJsonSchema({"oneOf": [reference_schema("env"), reference_schema("file")]}),
]
"""A password or key from the environment or a file; no repr shows it."""
