"""Header fields of HTTP requests in a configuration (RFC 9110 section 5)."""

from __future__ import annotations

import base64
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo, WithJsonSchema

from probes.core.redaction import CODED_PIECE, PLAIN_PIECE, Redaction
from probes.core.secret import Secret, read_secret
from probes.core.setting_types import reference_schema

_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2
_FIELD_VALUE = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?")  # section 5.5, without its obsolete octets
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_WITH_SCHEME = frozenset({"authorization", "proxy-authorization"})
_BETWEEN_PARTS = re.compile(r"[ \t;,=&\"]+")

LONG_SECRET = 64
"""Characters from which on a credential is withheld as a token: in blocks, which costs less."""


def _field_name(value: str) -> str:
    if not _FIELD_NAME.fullmatch(value):
        raise ValueError("is not the name of an HTTP header field; use letters, digits and dashes")
    return value


def _request_field_name(value: str) -> str:
    if value.lower() in _FRAMING:
        raise ValueError("mailsonde sets this header field as the connection needs it; remove it")
    return value


def _field_value(value: SecretStr | str) -> SecretStr | str:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not _FIELD_VALUE.fullmatch(text):
        raise ValueError("its value must be printable ASCII, without leading or trailing blanks")
    return value


def _text_or_secret(value: object, info: ValidationInfo) -> object:
    return value if isinstance(value, str) else read_secret(value, info)


FieldName = Annotated[str, AfterValidator(_field_name)]
"""The name of a header field."""

RequestFieldName = Annotated[FieldName, AfterValidator(_request_field_name)]
"""The name of a header field to send."""

SecretFieldValue = Annotated[Secret, AfterValidator(_field_value)]
"""The value of a header field, from the environment or a file."""

FieldValue = Annotated[
    str | SecretStr,
    BeforeValidator(_text_or_secret),
    AfterValidator(_field_value),
    WithJsonSchema({"oneOf": [{"type": "string"}, reference_schema("env"), reference_schema("file")]}),
]
"""The value of a header field: a text or, if it is secret, from the environment or a file."""


def withhold(name: str, value: SecretStr, redaction: Redaction) -> None:
    """Keep the secret value of the header field ``name`` out of what is shown.

    Of credentials, the scheme is shown. With Basic authentication (RFC 7617), the password that they encode
    is withheld too. Of cookies, each value is withheld.
    """
    text = value.get_secret_value()
    if name.lower() == "cookie":
        for pair in text.split(";"):
            _withhold_cookie(pair.strip(), redaction)
        return
    scheme, _, credential = text.partition(" ")
    credential = credential.strip()
    _withhold(credential if credential and name.lower() in _WITH_SCHEME else text, redaction)
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(credential, validate=True).decode("utf-8", "backslashreplace")
        except ValueError:
            return
        redaction.add(decoded.partition(":")[2] or decoded)


def _withhold_cookie(pair: str, redaction: Redaction) -> None:
    value = pair.partition("=")[2].strip('"') or pair
    _withhold(value if len(value) >= PLAIN_PIECE else pair, redaction)  # a shorter one matches by chance


def _withhold(secret: str, redaction: Redaction) -> None:
    if len(secret) < LONG_SECRET:
        redaction.add(secret)
        return
    redaction.add_long(secret)
    parts = _BETWEEN_PARTS.split(secret)
    for part in parts if len(parts) > 1 else ():
        if len(part) >= CODED_PIECE:
            _withhold(part, redaction)
