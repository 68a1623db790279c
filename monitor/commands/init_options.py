"""The options of `mailsonde init` and their checks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from pydantic import TypeAdapter, ValidationError

from monitor.config.listen import LISTEN, parse_listen
from probes.core.secret import sound_secret
from probes.core.setting_types import CertificateFile, EmailAddress, HostName, Line, Name
from probes.oauth2.settings import Cloud
from probes.protocols.dns import DomainName, ResolverSettings

Command = TypeVar("Command", bound=Callable[..., Any])


class _File(click.Path):
    """A path, which may begin with ``~`` also where no shell reads it, as in the answer to a question."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a text."""
        path = super().convert(value, param, ctx)
        try:
            return Path(os.fsdecode(path)).expanduser()
        except RuntimeError:
            self.fail("there is no such home directory; write the whole path", param, ctx)


class _Checked(click.ParamType):  # type: ignore[type-arg] # generic only in newer releases of click
    """A value that ``check`` accepts, or refuses with a ValueError that tells the user why."""

    def __init__(self, name: str, check: Callable[[str], Any]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of a text."""
        try:
            return self._check(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(mistake_in(error), param, ctx)


def _setting(name: str, of: Any) -> _Checked:
    """Return a check that uses the setting's own type."""
    return _Checked(name, TypeAdapter(of).validate_python)


def mistake_in(error: ValueError) -> str:
    """Return the setting type's own error message, without the value."""
    if not isinstance(error, ValidationError):
        return str(error)
    return error.errors(include_input=False)[0]["msg"].removeprefix("Value error, ")


def _resolver(text: str) -> ResolverSettings:
    try:
        return ResolverSettings.model_validate({"address": text})
    except ValueError:
        address, port = parse_listen(text)
        return ResolverSettings.model_validate({"address": address, "port": port})


def _listen(text: str) -> str:
    parse_listen(text)
    return text


def _variable_name(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("is not the name of an environment variable; do not enter the secret itself")
    return text


ADDRESS = _setting("address", EmailAddress)
USERNAME = _setting("name", Line)
TENANT = _setting("tenant", HostName)
CLIENT_ID = _setting("id", Line)
VARIABLE_NAME = _Checked("name", _variable_name)
FILE = _File()
PASSWORD = _Checked("password", lambda text: sound_secret(text, "the password").get_secret_value())


@dataclass(frozen=True, slots=True)
class Wishes:
    """The values from the command line; ``None`` if not given."""

    address: str | None
    username: str | None
    password_env: str | None
    password_file: Path | None
    smtp: str | None
    mailbox: str | None
    tls_ca: Path | None
    allow_insecure_auth: bool
    domain: str | None
    location: str | None
    listen: str
    ledger: Path | None
    resolver: ResolverSettings | None
    tenant: str | None
    cloud: Cloud | None
    client_id: str | None
    client_secret_env: str | None
    client_secret_file: Path | None
    certificate: Path | None
    service_account: Path | None
    out: Path
    yes: bool


_OPTIONS = (
    click.option("--address", type=ADDRESS, help="Mail address of the account for mailsonde."),
    click.option(
        "--username", type=USERNAME, help="Login name. Default: what the provider publishes, or the address."
    ),
    click.option("--password-env", metavar="NAME", help="Environment variable with the password."),
    click.option("--password-file", type=click.Path(path_type=Path), help="File with the password."),
    click.option("--smtp", metavar="HOST[:PORT]", help="Submission server; use smtps:// for implicit TLS."),
    click.option(
        "--mailbox",
        metavar="URL",
        help="Mailbox server: imap://HOST[:PORT] or pop3://, imaps://, pop3s://.",
    ),
    click.option("--tls-ca", type=_setting("file", CertificateFile), help="PEM file of the CA to trust."),
    click.option(
        "--allow-insecure-auth", is_flag=True, help="Log in without encryption at servers that you name."
    ),
    click.option(
        "--domain",
        type=_setting("domain", DomainName),
        help="Domain of the mx probe. Default: that of the address.",
    ),
    click.option(
        "--location", type=_setting("name", Name), help="Where the agent runs. Default: this machine's name."
    ),
    click.option(
        "--listen",
        type=_Checked("host:port", _listen),
        default=LISTEN,
        show_default=True,
        help="Address of /metrics and the live page.",
    ),
    click.option(
        "--ledger",
        type=click.Path(path_type=Path),
        help="Database of messages. Default: mailsonde.db next to the file.",
    ),
    click.option(
        "--resolver",
        type=_Checked("address[:port]", _resolver),
        help="DNS resolver for finding servers and for the mx probe. Connections use the system's.",
    ),
    click.option(
        "--tenant",
        type=TENANT,
        metavar="DOMAIN",
        help="Microsoft: the tenant's id, or one of its domains. Default: the address's domain.",
    ),
    click.option(
        "--cloud",
        type=click.Choice(get_args(Cloud)),
        help=(
            "Microsoft: the tenant's cloud; usgov is GCC High, china is 21Vianet. Default: what DNS shows; "
            "with --tenant, global."
        ),
    ),
    click.option("--client-id", type=CLIENT_ID, metavar="ID", help="OAuth2: the id of the application."),
    click.option(
        "--client-secret-env",
        type=VARIABLE_NAME,
        metavar="NAME",
        help="OAuth2: environment variable that will have the application's secret.",
    ),
    click.option(
        "--client-secret-file", type=FILE, help="OAuth2: file that will have the application's secret."
    ),
    click.option(
        "--certificate", type=FILE, help="Microsoft: PEM file with private key and certificate, not a secret."
    ),
    click.option("--service-account", type=FILE, help="Google: JSON file with the key of a service account."),
    click.option(
        "--out",
        "-o",
        type=click.Path(path_type=Path),
        default="mailsonde.yaml",
        show_default=True,
        help="File to write.",
    ),
    click.option(
        "--yes",
        "-y",
        "--no-input",
        "yes",
        is_flag=True,
        help=("Ask no questions; a missing value is an error."),
    ),
)


def init_options(command: Command) -> Command:
    """Add the options to ``command``, which gets the fields of `Wishes` as keyword arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
