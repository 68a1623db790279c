"""``mailsonde login``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.oauth2.device_flow import DeviceFlow
from probes.oauth2.settings import GenericOAuth2, GoogleOAuth2, MicrosoftOAuth2
from probes.oauth2.stored_token import StoredToken

REFUSED = 1
"""Exit status when there is no token."""


@click.command()
@click.argument("name")
@config_option
def login(name: str, config: Path) -> None:
    """Grant access to a mailbox as its owner, in a browser.

    This is the device flow of the `oauth2` entry NAME. It shows a page and a code: open the page in any
    browser, log in there as the mailbox's user, and enter the code. The refresh token is then stored in the
    entry's token_file, readable by its owner only, so run this as the agent's user. Exit status: 0 stored,
    1 refused, 2 mistakes in the configuration.

    \b
    Examples:
      mailsonde login contoso --config mailsonde.yaml
    """
    settings = load_or_exit(config).oauth2.get(name)
    if settings is None:
        click.echo(f"{config}: oauth2 has no entry {name!r}", err=True)
        sys.exit(UNUSABLE)
    if isinstance(settings, GoogleOAuth2) or settings.token_file is None:
        click.echo(f"{config}: oauth2.{name}: needs no login; only an entry with token_file does", err=True)
        sys.exit(UNUSABLE)
    try:
        token = run_on_loop(_granted(settings))
        StoredToken(settings.token_file).write(token)
    except ProbeFault as fault:
        click.echo(f"No token: {fault}", err=True)
        sys.exit(REFUSED)
    except OSError as error:
        click.echo(f"{settings.token_file} cannot be written: {error.strerror}", err=True)
        sys.exit(REFUSED)
    click.echo(f"Stored in {settings.token_file}.")


async def _granted(settings: MicrosoftOAuth2 | GenericOAuth2) -> str:
    flow = DeviceFlow(settings, SystemClock())
    code = await flow.begin()
    click.echo(f"Open {code.page} and enter the code {code.user_code}")
    click.echo(f"Waiting for up to {code.lifetime / 60:.0f} min; Ctrl-C gives up.", err=True)
    return await flow.refresh_token(code)
