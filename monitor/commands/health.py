"""``mailsonde health``."""

from __future__ import annotations

import http.client
import ssl
import sys
from contextlib import closing, suppress

import click

from monitor.config.listen import LISTEN, parse_listen

HEALTH_SECONDS = 4.0
"""Seconds to wait for an answer. The container's health check waits 10, for two of them."""


def _address(ctx: click.Context, argument: click.Parameter, value: str) -> tuple[str, int]:
    try:
        return parse_listen(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, argument) from None


@click.command()
@click.argument("address", default=LISTEN, metavar="[HOST:PORT]", callback=_address)
def health(address: tuple[str, int]) -> None:
    """Ask the agent on this machine whether it is alive.

    For the health checks of containers and orchestrators. HOST:PORT is that of agent.listen, by default
    127.0.0.1:9725. The command finds out whether the agent speaks TLS, and needs no password and no
    client certificate. It reads no configuration, so that a mistake there does not end an agent that runs.
    Exit status: 0 alive, 1 no answer.

    \b
    Examples:
      mailsonde health
      mailsonde health 127.0.0.1:9800
    """
    try:
        is_alive = _is_alive(*address)
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"no answer from the agent: {error}", err=True)
        sys.exit(1)
    click.echo("the agent is alive" if is_alive else "something else than the agent answers")
    sys.exit(0 if is_alive else 1)


def _is_alive(host: str, port: int) -> bool:
    """Return whether the agent answers. Raises OSError and HTTPException if nothing does."""
    with suppress(
        http.client.HTTPException, ConnectionResetError, BrokenPipeError
    ):  # as TLS answers plain text
        return _is_healthy(http.client.HTTPConnection(host, port, timeout=HEALTH_SECONDS))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies nothing: nothing secret is sent
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, port, timeout=HEALTH_SECONDS, context=context)
    connection.connect()
    with suppress(http.client.HTTPException, ConnectionError, ssl.SSLError):
        return _is_healthy(connection)
    return True  # its event loop made the handshake, but it wants a client certificate


def _is_healthy(connection: http.client.HTTPConnection) -> bool:
    with closing(connection):
        connection.request("GET", "/-/healthy")
        return connection.getresponse().status == http.HTTPStatus.OK
