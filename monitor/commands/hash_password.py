"""``mailsonde hash-password``."""

from __future__ import annotations

import os
import sys

import bcrypt
import click

LONGEST = 72
"""Octets that bcrypt reads of a password; two longer ones could be the same to it."""


@click.command("hash-password")
@click.option(
    "--cost",
    type=click.IntRange(4, 16),
    default=10,
    show_default=True,
    help="How long a check takes: about 0.1 s with 10, and twice as long with each step.",
)
def hash_password(cost: int) -> None:
    """Print the bcrypt hash of a password, for web.yml.

    The hash belongs into basic_auth_users of a web configuration. The command asks for the password twice,
    or reads one line if its input is no terminal.

    \b
    Examples:
      mailsonde hash-password
      mailsonde hash-password --cost 12
    """
    if sys.stdin.isatty():
        typed = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        password = os.fsencode(typed)
    else:
        password = sys.stdin.buffer.readline(LONGEST + 3).rstrip(b"\r\n")
    if not 1 <= len(password) <= LONGEST:
        raise click.ClickException(f"a password has 1 to {LONGEST} octets, which is all that bcrypt reads")
    if b"\0" in password:
        raise click.ClickException("a password has no NUL, at which bcrypt stops reading")
    click.echo(bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode())
