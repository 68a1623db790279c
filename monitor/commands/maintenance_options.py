"""Shared by ``pause`` and ``resume``: which probes they are for, and the ledger they change."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeVar

import click

from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE
from monitor.config.models import Configuration
from monitor.config.selection import Choice, chosen, labelled, nothing_chosen
from monitor.pausing import selections_of
from probes.delivery.message_life import LedgerError

NO_LEDGER = 3
"""Exit status if the ledger cannot be used."""

NO_CHOICE = 'say which probes: their names, "*" for all, or --label team=messaging'

T = TypeVar("T")


def _labels(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    labels = {}
    for value in values:
        name, separator, wanted = value.partition("=")
        if not name or not separator or not wanted:
            raise click.BadParameter(f"{value!r} is not a label such as team=messaging")
        labels[name] = wanted
    return labels


label_option = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_labels,
    help="Only probes with this label; with several, those that have all of them.",
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a pause is for, as the ledger has it, and how many probes these are."""

    selections: list[str]
    probes: int


def choice_or_exit(configuration: Configuration, patterns: Sequence[str], labels: dict[str, str]) -> Chosen:
    """Return which probes are meant; if there is none for a name or for the labels, say so and exit."""
    names = labelled(configuration.enabled_probes, configuration.site)
    mistakes = [told for each in patterns or (None,) if (told := nothing_chosen(names, each, labels))]
    if not patterns and not labels:
        mistakes = [NO_CHOICE]
    if mistakes:
        click.echo("\n".join(mistakes), err=True)
        sys.exit(UNUSABLE)
    return Chosen(selections_of(patterns, labels), len(chosen(names, Choice.of(patterns, labels))))


def on_ledger(work: Coroutine[object, object, T]) -> T:
    """Return the result of ``work``; if the ledger cannot be used, say why and exit."""
    try:
        return run_on_loop(work)
    except LedgerError as error:
        click.echo(str(error), err=True)
        sys.exit(NO_LEDGER)
