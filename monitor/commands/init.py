"""``mailsonde init``."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import SecretStr, TypeAdapter, ValidationError

from monitor.commands.event_loop import run_on_loop
from monitor.commands.init_dialogue import ask, end, require_new, step
from monitor.commands.init_oauth2 import (
    ask_for_access,
    is_oauth2_agreed,
    oauth2_servers,
    wished_hosting,
    wishes_oauth2,
)
from monitor.commands.init_options import ADDRESS, PASSWORD, USERNAME, Wishes, init_options, mistake_in
from monitor.commands.results import plain_line, remedy_lines
from monitor.config.exposure import exposure
from monitor.config.models import AgentSettings
from monitor.init.endpoint import Endpoint, given_endpoints
from monitor.init.providers import Hosting, hosting_at
from monitor.init.trial import reach, try_out
from monitor.init.writing import MAILBOX, Files, OAuth2Entry, Plan, Reference, ledger_url, written
from monitor.logs import set_up_logs
from monitor.runner import Result
from probes.core.clock import SystemClock
from probes.core.faults import legible
from probes.core.reasons import Outcome, Reason
from probes.core.secret import Secret
from probes.core.setting_types import Name
from probes.delivery.message_life import LedgerError
from probes.protocols.dns import Resolver, ResolverSettings
from probes.registry import MESSAGE_KINDS

if TYPE_CHECKING:
    from monitor.init.discovery import Source

STOPPED = 1
"""Exit status when the user stopped it."""

LOGINS = 3
"""Maximum number of passwords to try: more may lock the account."""

VARIABLE = "MAILSONDE_PASSWORD"


@click.command()
@init_options
def init(**options: Any) -> None:
    """Create a configuration from a mail address and its password.

    Finds the address's servers, tries them, and writes the file. Credentials go only to servers
    that you have seen, over verified TLS. One test message is sent there and back. Nothing is
    written until you agree, and no file is overwritten.

    Exchange Online and Google take access tokens in place of passwords. For a mailbox there, a
    configuration with OAuth2 is written, without a login; `mailsonde doctor` then examines it. Exit
    status: 0 written, 1 stopped, 2 something does not work.

    \b
    Examples:
      mailsonde init
      mailsonde init --address canary@example.com --out mailsonde.yaml
      mailsonde init --yes --address canary@example.com --password-env CANARY_PASSWORD
      mailsonde init --address a@contoso.com --tenant contoso.onmicrosoft.com --certificate app.pem
      mailsonde init --address a@example.com --smtp mail.example.com:587 --mailbox imap://mail.example.com:993
    """
    files = Files()
    set_up_logs("auto", logging.WARNING)
    try:
        _init(Wishes(**options), files)
    except LedgerError as error:
        end(f"the test cannot be made: {error}")
    except (KeyboardInterrupt, click.Abort):
        files.discard()
        click.echo("\nstopped; nothing was written", err=True)
        sys.exit(STOPPED)


def _init(wishes: Wishes, files: Files) -> None:
    require_new(wishes.out)
    address = wishes.address or ask(
        wishes, "--address", "Mail address of the account for mailsonde", type=ADDRESS
    )
    password = _given_password(wishes)
    named = _named(wishes)
    hosting = wished_hosting(wishes) or hosting_at(named)
    found: list[Endpoint] = []
    if hosting is None and not (wishes.smtp and wishes.mailbox):
        found, hosting = _search(wishes, address)
    if hosting is not None and is_oauth2_agreed(wishes, hosting, named):
        _set_up_oauth2(wishes, address, hosting, named, files)
        return
    if wishes_oauth2(wishes):
        end("no provider with OAuth2 was found; name it with --tenant or --service-account")
    submission, *incoming = _servers(wishes, [*named, *found])
    plan = _plan(wishes, address, {"env": VARIABLE}, submission, incoming[0])
    _confirm_servers(wishes, plan, incoming)
    plan, password = _try(wishes, plan, incoming[1:], password)
    _write_with_password(wishes, plan, password, files)


def _plan(
    wishes: Wishes,
    address: str,
    credentials: Reference | OAuth2Entry,
    submission: Endpoint,
    incoming: Endpoint,
) -> Plan:
    return Plan(
        address=address,
        username=wishes.username or submission.username or incoming.username or address,
        credentials=credentials,
        submission=submission,
        incoming=incoming,
        domain=wishes.domain or address.rpartition("@")[2].lower(),
        location=wishes.location or _location(),
        listen=wishes.listen,
        ledger=ledger_url(wishes.ledger or wishes.out.with_name("mailsonde.db")),
        tls_ca=wishes.tls_ca.absolute() if wishes.tls_ca is not None else None,
        resolver=wishes.resolver,
    )


def _search(wishes: Wishes, address: str) -> tuple[list[Endpoint], Hosting | None]:
    """Return the servers that the domain publishes, and the provider that they are of."""
    from monitor.init.discovery import Discovery, candidates  # imports httpx, which takes half a second
    from monitor.init.web import Web

    resolver = Resolver(wishes.resolver or ResolverSettings())
    discovery = Discovery(address, resolver, Web(resolver, wishes.tls_ca))

    async def search() -> tuple[Hosting | None, list[Source]]:
        return await asyncio.gather(discovery.hosting(), discovery.sources(_show_source))

    with step(f"Looking for the mail servers of {address.rpartition('@')[2]}"):
        hosting, sources = run_on_loop(search())
    found = candidates(sources)
    readable = [endpoint for endpoint in found if endpoint.protocol != "smtp"]
    unnamed = [
        endpoint for endpoint in found if not (wishes.smtp if endpoint.protocol == "smtp" else wishes.mailbox)
    ]
    return unnamed, hosting or hosting_at(readable[:1])


def _set_up_oauth2(
    wishes: Wishes, address: str, hosting: Hosting, named: Sequence[Endpoint], files: Files
) -> None:
    """Write a configuration that needs no password, and hand over to the doctor."""
    access = ask_for_access(wishes, hosting, address)
    plan = _plan(wishes, address, access.entry, *oauth2_servers(hosting, named))
    file = shlex.quote(str(wishes.out))
    next_steps = (*access.steps, f"mailsonde doctor mailbox {MAILBOX} --config {file}")
    _write(wishes, {wishes.out: (written(plan), 0o644)}, next_steps, files)


def _servers(wishes: Wishes, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return the server to submit to, then those to read from, the preferred one first."""
    with step("Connecting, without logging in"):
        tried = run_on_loop(reach(endpoints, wishes.tls_ca, SystemClock()))
    chosen = {protocol: _first_usable(tried, protocol) for protocol in ("smtp", "imap", "pop3")}
    submission, incoming = (
        chosen["smtp"],
        [one for one in (chosen["imap"], chosen["pop3"]) if one is not None],
    )
    if submission is None:
        end("no submission server was found; name yours: --smtp HOST:PORT" + _hint(wishes, tried))
    if not incoming:
        end("no IMAP or POP3 server was found; name yours: --mailbox imap://HOST:PORT" + _hint(wishes, tried))
    return [submission, *incoming]


def _named(wishes: Wishes) -> list[Endpoint]:
    """Return the servers that the user named; a server of the wrong kind is a mistake."""
    found = []
    for option, text, default, protocols in (
        ("--smtp", wishes.smtp, "smtp", {"smtp"}),
        ("--mailbox", wishes.mailbox, "imap", {"imap", "pop3"}),
    ):
        if text is None:
            continue
        try:
            endpoints = given_endpoints(text, default, wishes.allow_insecure_auth)
        except ValueError as error:
            end(f"{option}: {error}")
        if endpoints[0].protocol not in protocols:
            end(f"{option}: {endpoints[0].protocol} does not fit here; write {default}://HOST:PORT")
        found += endpoints
    return found


def _first_usable(tried: Sequence[tuple[Endpoint, str]], protocol: str) -> Endpoint | None:
    """Return the first usable endpoint of a protocol, and show the others that were considered."""
    for endpoint, obstacle in tried:
        if endpoint.protocol != protocol:
            continue
        if not obstacle:
            click.echo(f"  ok  {endpoint} (from {endpoint.source})")
            return endpoint
        click.echo(f"  no  {endpoint} (from {endpoint.source}): {obstacle}")
    return None


def _hint(wishes: Wishes, tried: Sequence[tuple[Endpoint, str]]) -> str:
    obstacles = [obstacle for _, obstacle in tried]
    hint = ""
    if any(obstacle.startswith(str(Reason.CERTIFICATE_UNTRUSTED)) for obstacle in obstacles):
        hint += ", and its CA if it is your own: --tls-ca FILE"
    if wishes.resolver is not None and any(obstacle.startswith("dns_") for obstacle in obstacles):
        hint += "; its name must resolve on this machine: the agent connects without --resolver"
    return hint


def _confirm_servers(wishes: Wishes, plan: Plan, incoming: Sequence[Endpoint]) -> None:
    """Send no secret to a server that the user has neither named nor agreed to."""
    servers = [plan.submission, *incoming]
    if all(server.source == "you" for server in servers):
        return
    strangers = [server for server in servers if not server.vouched]
    if strangers:
        hosts = ", ".join(dict.fromkeys(server.host for server in strangers))
        remark = f"outside {plan.address.rpartition('@')[2]}, and only unsigned DNS points to it: {hosts}"
        if wishes.yes:
            end(f"not sending the password to a server {remark}; name it with --smtp and --mailbox")
        click.echo(f"  Check carefully: the server is {remark}")
    if incoming[1:]:
        click.echo(f"  {incoming[1]} only if {incoming[0].protocol.upper()} refuses the login")
    if not wishes.yes and not click.confirm(f"Log in at these servers as {plan.username}?", default=True):
        raise click.Abort


def _try(
    wishes: Wishes, plan: Plan, others: Sequence[Endpoint], password: SecretStr | None
) -> tuple[Plan, SecretStr]:
    """Log in and send a test message; return the plan that works and its password."""
    waiting = list(others)
    passwords = 0
    while True:
        if password is None:
            password = SecretStr(
                ask(wishes, "--password-env or --password-file", "Password", hide_input=True, type=PASSWORD)
            )
            passwords += 1
        with step("Logging in, and sending one message there and back"):
            results = run_on_loop(try_out(written(plan), password, SystemClock(), _show_result))
        refused = [
            result for result in results if result.kind in {"smtp", "imap", "pop3"} and _failed(result)
        ]
        if not refused:
            _require_arrival(wishes, results)
            return plan, password
        if waiting and all(result.kind == "imap" for result in refused):
            plan = replace(plan, incoming=waiting.pop(0))
            click.echo(f"IMAP cannot be used; trying {plan.incoming}")
            continue
        wrong = any(result.verdict.reason is Reason.AUTH_FAILED for result in refused)
        if wishes.yes or not wrong or passwords >= LOGINS:
            end("the login does not work; the lines above show the step and the server's answer")
        click.echo("The server refused the login. Enter name and password again, or press Ctrl-C to stop.")
        username = click.prompt("Login name", default=plan.username, type=USERNAME)
        plan, password = replace(plan, username=username), None


def _require_arrival(wishes: Wishes, results: Sequence[Result]) -> None:
    """Continue only if the message came back or the user wants the file anyway."""
    if not any(_failed(result) for result in results if result.kind in MESSAGE_KINDS):
        return
    click.echo("The message did not come back; the line above shows the reason.", err=True)
    if wishes.yes:
        end("nothing was written; fix the cause, or run without --yes to write the file anyway")
    if not click.confirm("Write the configuration anyway?", default=False):
        raise click.Abort


def _write_with_password(wishes: Wishes, plan: Plan, password: SecretStr, files: Files) -> None:
    """Ask where to keep the password, and write."""
    secret = wishes.out.with_suffix(".password")
    storage = _storage(wishes, secret)
    texts = {wishes.out: (written(replace(plan, credentials=storage)), 0o644)}
    if storage == {"file": secret.name}:
        texts[secret] = (password.get_secret_value() + "\n", 0o600)
    file = shlex.quote(str(wishes.out))
    next_steps = [
        f"mailsonde validate {file}",
        f"mailsonde check --config {file}",
        f"mailsonde run --config {file}",
        f"mailsonde render alerts --config {file} --out rules/",
    ]
    if "env" in storage:
        next_steps.insert(0, f"export {storage['env']}=…   # the password, where the agent runs")
    _write(wishes, texts, next_steps, files)


def _write(
    wishes: Wishes, texts: Mapping[Path, tuple[str, int]], next_steps: Sequence[str], files: Files
) -> None:
    """Ask whether to write files of these texts and permissions; then write, and show the next steps."""
    names = " and ".join(str(path) for path in texts)
    if not wishes.yes and not click.confirm(f"Write {names}?", default=True):
        raise click.Abort
    try:
        for path, (text, mode) in texts.items():
            files.write(path, text, mode)
    except OSError as error:
        files.discard()
        end(f"cannot write {error.filename or wishes.out}: {error.strerror}; nothing was written")
    click.echo(f"Wrote {names}. Next:")
    for line in next_steps:
        click.echo(f"  {line}")
    if warning := exposure(AgentSettings.model_validate({"listen": wishes.listen}), None):
        click.echo(f"{warning}.", err=True)


def _storage(wishes: Wishes, secret: Path) -> Mapping[str, str]:
    """Return where the file will say to find the password."""
    if wishes.password_env is not None:
        return {"env": wishes.password_env}
    if wishes.password_file is not None:
        return {"file": str(wishes.password_file.absolute())}
    choice = click.prompt(
        f"Keep the password in a file ({secret.name}, only for you) or in the environment ({VARIABLE})?",
        type=click.Choice(["file", "env"]),
        default="file",
    )
    if choice == "env":
        return {"env": VARIABLE}
    require_new(secret)
    return {"file": secret.name}


def _given_password(wishes: Wishes) -> SecretStr | None:
    if wishes.password_env is not None and wishes.password_file is not None:
        end("give either --password-env or --password-file, not both")
    if wishes.password_env is not None:
        if wishes.password_env not in os.environ:
            end(f"environment variable {wishes.password_env} is not set; set it, or use --password-file PATH")
        where = {"env": wishes.password_env}
    elif wishes.password_file is not None:
        where = {"file": str(wishes.password_file.absolute())}
    else:
        return None
    try:
        secret: SecretStr = TypeAdapter(Secret).validate_python(where)
    except ValidationError as error:
        end(mistake_in(error))
    return secret


def _location() -> str:
    """Return this machine's name as the location, or ``local`` if the name is not valid."""
    try:
        name: str = TypeAdapter(Name).validate_python(socket.gethostname().partition(".")[0])
    except ValidationError:
        return "local"
    return name


def _failed(result: Result) -> bool:
    return result.verdict.outcome is not Outcome.OK


def _show_source(source: Source) -> None:
    click.echo(f"  {source.name}: {legible(source.said, 120)}")


def _show_result(result: Result) -> None:
    for line in (plain_line(result), *remedy_lines(result)):
        click.echo(f"  {line}")
