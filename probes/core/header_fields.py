"""Header fields of HTTP requests in a configuration (RFC 9110 section 5)."""

from __future__ import annotations

import base64
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo, WithJsonSchema

from probes.core.redaction import Redaction
from probes.core.secret import Secret, read_secret
from probes.core.setting_types import reference_schema

_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2
_FIELD_VALUE = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?")  # section 5.5, without its obsolete octets

LONG_SECRET = 64
"""Characters from which on a credential is withheld as a token: in blocks, which costs less."""


def _field_name(value: str) -> str:
    if not _FIELD_NAME.fullmatch(value):
        raise ValueError("is not the name of an HTTP header field; use letters, digits and dashes")
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

SecretFieldValue = Annotated[Secret, AfterValidator(_field_value)]
"""The value of a header field, from the environment or a file."""

FieldValue = Annotated[
    str | SecretStr,
    BeforeValidator(_text_or_secret),
    AfterValidator(_field_value),
    WithJsonSchema({"oneOf": [{"type": "string"}, reference_schema("env"), reference_schema("file")]}),
]
"""The value of a header field: a text or, if it is secret, from the environment or a file."""


def withhold(value: SecretStr, redaction: Redaction) -> None:
    """Keep the secret value of a header field out of what is shown: its credential, without the scheme.

    With Basic authentication (RFC 7617), that includes the password that the credential encodes.
    """
    scheme, blank, credential = value.get_secret_value().partition(" ")
    credential = credential if blank else scheme
    if len(credential) >= LONG_SECRET:
        redaction.add_token(credential)
    else:
        redaction.add(credential)
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(credential, validate=True).decode()
        except ValueError:
            return
        redaction.add(decoded.partition(":")[2] or decoded)
