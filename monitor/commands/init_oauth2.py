"""The part of `mailsonde init` for mailboxes at providers that take access tokens in place of passwords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from monitor.commands.init_dialogue import end
from monitor.commands.init_options import CLIENT_ID, FILE, TENANT, VARIABLE_NAME, Wishes
from monitor.init.endpoint import Endpoint, MailProtocol
from monitor.init.providers import EXCHANGE_ONLINE_OF, GOOGLE, Hosting
from monitor.init.writing import OAuth2Entry, Reference, Setting
from probes.oauth2.settings import GOOGLE_TOKENS, Cloud
from probes.protocols.dns import a_labels

FILL_IN = "FILL-IN"
"""Stands in the file for an id that is not known yet."""

Kind = Literal["env", "file", "certificate"]


@dataclass(frozen=True, slots=True)
class Access:
    """An OAuth2 entry, and what is left to do before it works, a line for each step."""

    entry: OAuth2Entry
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Secret:
    """Where the agent will find a secret, and what it is."""

    kind: Kind
    where: str
    what: str

    @property
    def reference(self) -> Reference:
        """The value of its setting."""
        return {"env" if self.kind == "env" else "file": self.where}

    @property
    def steps(self) -> tuple[str, ...]:
        """What is left to do: set the variable, or make the file."""
        if self.kind == "env":
            return (f"export {self.where}=…   # {self.what}, where the agent runs",)
        return () if Path(self.where).exists() else (f"put {self.what} into {self.where}",)


def wished_hosting(wishes: Wishes) -> Hosting | None:
    """Return the provider that the options are for; ends the command if they contradict each other."""
    credentials = {
        "--client-secret-env": wishes.client_secret_env,
        "--client-secret-file": wishes.client_secret_file,
        "--certificate": wishes.certificate,
        "--service-account": wishes.service_account,
    }
    given = [option for option, value in credentials.items() if value is not None]
    if len(given) > 1:
        end(f"give only one of {' and '.join(given)}")
    if wishes.service_account and (wishes.tenant or wishes.client_id or wishes.cloud):
        end("--service-account is Google's, and goes with none of --tenant, --client-id and --cloud")
    if wishes_oauth2(wishes) and (wishes.password_env or wishes.password_file):
        end("give either a password or the options of OAuth2, not both")
    if wishes.tenant or wishes.certificate or wishes.cloud:
        return Hosting(EXCHANGE_ONLINE_OF[wishes.cloud or "global"], "by your options")
    return Hosting(GOOGLE, "by your options") if wishes.service_account else None


def wishes_oauth2(wishes: Wishes) -> bool:
    """Return whether there is an option of OAuth2."""
    return any(
        (
            *(wishes.tenant, wishes.cloud, wishes.client_id, wishes.client_secret_env),
            *(wishes.client_secret_file, wishes.certificate, wishes.service_account),
        )
    )


def is_oauth2_agreed(wishes: Wishes, hosting: Hosting, named: Sequence[Endpoint]) -> bool:
    """Say what the provider does with passwords; return whether to set up OAuth2 instead."""
    provider, is_wished = hosting.provider, wishes_oauth2(wishes)
    click.echo(f"The mailbox seems to be at {provider.name} ({hosting.shown_by}). {provider.refusal}.")
    if wishes.password_env or wishes.password_file:
        click.echo("Your password is tried nevertheless. Without one, init sets up OAuth2.")
        return False
    if any(endpoint.host.lower() not in provider.hosts for endpoint in named):
        if is_wished:
            end(f"--smtp and --mailbox name servers that are not those of {provider.name}; leave them out")
        click.echo("The servers that you named are tried nevertheless.")
        return False
    click.echo("It takes access tokens (OAuth2). docs/oauth2.md has the steps at the provider.")
    return wishes.yes or is_wished or click.confirm("Set up OAuth2?", default=True)


def oauth2_servers(hosting: Hosting, named: Sequence[Endpoint]) -> tuple[Endpoint, Endpoint]:
    """Return the servers to submit to and to read from.

    Exchange Online can limit an application to one mailbox by Graph only, so Graph it is unless the user
    named servers.
    """
    provider = hosting.provider
    if provider.cloud is not None and not named:
        graph = provider.endpoint("graph")
        return graph, graph
    read_by: list[MailProtocol] = [endpoint.protocol for endpoint in named if endpoint.protocol != "smtp"]
    return provider.endpoint("smtp", named), provider.endpoint((read_by or ["imap"])[0], named)


def ask_for_access(wishes: Wishes, hosting: Hosting, address: str) -> Access:
    """Ask for what the entry needs and the options do not give, but never for a secret itself."""
    issuer, cloud = hosting.provider.issuer, hosting.provider.cloud
    if cloud is not None:
        return _microsoft(wishes, issuer, cloud, a_labels(address.rpartition("@")[2]))
    if wishes.service_account or _wants_service_account(wishes):
        return _service_account(wishes, issuer)
    return _refresh_token(wishes, issuer)


def _microsoft(wishes: Wishes, name: str, cloud: Cloud, domain: str) -> Access:
    tenant = wishes.tenant or _answer(
        wishes, "Tenant: its id, or one of its domains", default=domain, type=TENANT
    )
    client_id, steps = _client_id(wishes, name, "Application (client) id")
    secret = _given_secret(wishes) or _asked_secret(wishes, _MICROSOFT, "the application's secret")
    key = "certificate" if secret.kind == "certificate" else "client_secret"
    settings: tuple[Setting, ...] = (
        ("provider", "microsoft", "who issues tokens"),
        ("tenant", tenant, "the tenant's id, or one of its domains"),
        *([] if cloud == "global" else [("cloud", cloud, "the cloud of Microsoft that the tenant is in")]),
        client_id,
        (key, secret.reference, "where to read the proof of its identity"),
    )
    if wishes.yes and wishes.tenant is None:
        steps = (f"check tenant in oauth2.{name}: {tenant} is the domain of the address", *steps)
    return Access(OAuth2Entry(name, settings), (*steps, *secret.steps))


def _wants_service_account(wishes: Wishes) -> bool:
    if wishes.yes or wishes_oauth2(wishes):
        return False
    choice = click.prompt(
        "Access by a refresh token, to this mailbox only, or by a service account, to all of the domain?",
        type=click.Choice(["refresh-token", "service-account"]),
        default="refresh-token",
    )
    return bool(choice == "service-account")


def _service_account(wishes: Wishes, name: str) -> Access:
    path = wishes.service_account or Path(
        _answer(wishes, "File with the service account's key", default="key.json", type=FILE)
    )
    key = _Secret("file", str(path.absolute()), "the service account's key")
    settings: tuple[Setting, ...] = (
        ("provider", "google", "who issues tokens"),
        ("service_account", key.reference, "where to read the service account's key"),
    )
    return Access(OAuth2Entry(name, settings), key.steps)


def _refresh_token(wishes: Wishes, name: str) -> Access:
    client_id, steps = _client_id(wishes, name, "OAuth client id")
    secret = _given_secret(wishes) or _asked_secret(wishes, _CLIENT_SECRET, "the OAuth client's secret")
    token = _asked_secret(wishes, _REFRESH_TOKEN, "the refresh token")
    settings: tuple[Setting, ...] = (
        ("provider", "generic", "Google, by a refresh token for this mailbox only"),
        ("token_url", GOOGLE_TOKENS, "who issues tokens"),
        client_id,
        ("client_secret", secret.reference, "where to read the client's secret"),
        ("refresh_token", token.reference, "where to read the refresh token"),
    )
    return Access(OAuth2Entry(name, settings), (*steps, *secret.steps, *token.steps))


def _client_id(wishes: Wishes, entry: str, question: str) -> tuple[Setting, tuple[str, ...]]:
    """Return the setting, and the step that is left to do if the id is not known."""
    client_id = wishes.client_id or _answer(
        wishes, f"{question}, or Enter to fill it in later", default=FILL_IN, type=CLIENT_ID
    )
    comment = "the id of the application at the provider"
    if client_id != FILL_IN:
        return ("client_id", client_id, comment), ()
    return ("client_id", FILL_IN, f"fill in {comment}"), (f"fill in client_id in oauth2.{entry}",)


_CLIENT_SECRET: dict[Kind, str] = {"env": "MAILSONDE_CLIENT_SECRET", "file": "client.secret"}
_MICROSOFT: dict[Kind, str] = {**_CLIENT_SECRET, "certificate": "app.pem"}
_REFRESH_TOKEN: dict[Kind, str] = {"env": "MAILSONDE_REFRESH_TOKEN", "file": "refresh.token"}
"""Where secrets may be, the default first, and how the place is usually called."""


def _given_secret(wishes: Wishes) -> _Secret | None:
    if wishes.client_secret_env is not None:
        return _Secret("env", wishes.client_secret_env, "the client's secret")
    if wishes.client_secret_file is not None:
        return _Secret("file", str(wishes.client_secret_file.absolute()), "the client's secret")
    if wishes.certificate is not None:
        return _Secret("certificate", str(wishes.certificate.absolute()), _CERTIFICATE)
    return None


_CERTIFICATE = "the private key and its certificate, in PEM,"


def _asked_secret(wishes: Wishes, usual: dict[Kind, str], what: str) -> _Secret:
    """Ask where a secret is, or take the default."""
    kinds = list(usual)
    kind: Kind = _answer(
        wishes,
        f"Where is {what}: in the environment, in a file"
        + (", or is it a certificate?" if "certificate" in usual else "?"),
        default=kinds[0],
        type=click.Choice(kinds),
    )
    if kind == "env":
        where = _answer(wishes, "Name of the environment variable", default=usual[kind], type=VARIABLE_NAME)
        return _Secret(kind, where, what)
    path = Path(_answer(wishes, "File", default=usual[kind], type=FILE))
    return _Secret(kind, str(path.absolute()), _CERTIFICATE if kind == "certificate" else what)


def _answer(wishes: Wishes, question: str, *, default: str, **how: Any) -> Any:
    """Return the answer to a question, or the default if none may be asked."""
    return default if wishes.yes else click.prompt(question, default=default, **how)
