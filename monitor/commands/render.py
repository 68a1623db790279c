"""``mailsonde render``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from monitor.commands.options import (
    UNUSABLE,
    config_option,
    load_or_exit,
    no_secrets_option,
    sound_or_exit,
)
from monitor.config.listen import parse_listen
from monitor.config.load import ConfigurationError
from monitor.config.models import Configuration
from monitor.config.web_config import read_web_config
from monitor.rendering import (
    RULES,
    render_alerts,
    render_dashboards,
    render_prometheus,
    runbooks_address,
    write_files,
)
from monitor.scrape_access import ScrapeAccess, scrape_access
from monitor.thresholds import load_thresholds

_RUNBOOKS_ARE_PATHS = [
    "the runbook links in alerts are only paths; set `agent.url`, where the agent shows them, or publish the "
    "folder alerts/runbooks and set `runbooks` in your --thresholds to its address"
]
_NO_ALERTMANAGER = ["alerts reach nobody without an Alertmanager; add --alertmanager HOST:PORT"]


def _missing_rules(config: Path, out: Path) -> list[str]:
    """Return a warning where Prometheus would find no rules next to its configuration in ``out``."""
    if any((out / RULES).glob("mailsonde-*.rules.yaml")):
        return []
    options = shlex.join(("--config", str(config), "--out", str(out / RULES)))
    return [f"there are no alert rules yet; run mailsonde render alerts {options}"]


def _access(configuration: Configuration, *, secrets: bool) -> ScrapeAccess:
    """Return what the agent asks of Prometheus; raises ConfigurationError."""
    agent = configuration.agent
    found = read_web_config(agent.web_config, secrets=secrets) if agent.web_config is not None else None
    if isinstance(found, list):
        raise ConfigurationError(found)
    return scrape_access(found, agent.listen[0])


def _missing_files(access: ScrapeAccess, out: Path) -> list[str]:
    """Return a warning for each file that Prometheus would not find next to its configuration in ``out``."""
    return [
        f"there is no {out / name} yet; it must contain {what}"
        for name, what in access.files.items()
        if not (out / name).exists()
    ]


def _addresses(
    ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    try:
        return tuple(parse_listen(value) for value in values)
    except ValueError:
        raise click.BadParameter(
            "must be HOST:PORT, such as 127.0.0.1:9093 or [::1]:9093", ctx, option
        ) from None


@click.command()
@click.argument("what", type=click.Choice(["alerts", "dashboards", "prometheus"]))
@config_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Directory to write to; created if missing."
)
@click.option(
    "--thresholds",
    type=click.Path(path_type=Path),
    help="For alerts: your own thresholds (YAML), which override those in alerts/thresholds.yaml.",
)
@click.option(
    "--alertmanager",
    "alertmanagers",
    metavar="HOST:PORT",
    callback=_addresses,
    multiple=True,
    help="For prometheus: an Alertmanager to send alerts to; may be repeated.",
)
@no_secrets_option
def render(
    what: str,
    config: Path,
    out: Path,
    thresholds: Path | None,
    alertmanagers: tuple[tuple[str, int], ...],
    no_secrets: bool,
) -> None:
    """Write alerts, dashboards or a Prometheus configuration.

    \b
    alerts      the rules in alerts/rules, which are valid for every site, with links to
                your live page and Grafana, and with your own thresholds
    dashboards  Grafana dashboards (JSON to import or provision)
    prometheus  a prometheus.yml that scrapes this agent, loads the rules in rules/
                next to it, and sends alerts to your Alertmanager; if the agent has
                TLS or users, it names files next to it for the CA and the password

    \b
    Examples:
      mailsonde render alerts --config mailsonde.yaml --out rules/
      mailsonde render alerts --config mailsonde.yaml --thresholds ours.yaml --out rules/
      mailsonde render dashboards --config mailsonde.yaml --out dashboards/
      mailsonde render prometheus --config mailsonde.yaml --alertmanager localhost:9093 --out .

    Replaces files with the same name. Prints the path of each file, and a warning if alerts
    would not fire or would reach nobody.
    The files contain no secrets: with --no-secrets they are the same.
    """
    if thresholds is not None and what != "alerts":
        raise click.UsageError(f"--thresholds is for alerts, not for {what}")
    if alertmanagers and what != "prometheus":
        raise click.UsageError(f"--alertmanager is for prometheus, not for {what}")
    configuration = load_or_exit(config, secrets=not no_secrets)
    warnings: list[str] = []
    if what == "alerts":
        limits = sound_or_exit(lambda: load_thresholds(thresholds))
        files = render_alerts(configuration, limits)
        is_link = "://" in runbooks_address(configuration, limits)
        warnings += [] if is_link else _RUNBOOKS_ARE_PATHS
    elif what == "prometheus":
        access = sound_or_exit(lambda: _access(configuration, secrets=not no_secrets))
        files = render_prometheus(configuration, alertmanagers, access)
        warnings += [] if alertmanagers else _NO_ALERTMANAGER
        warnings += _missing_rules(config, out)
        warnings += _missing_files(access, out)
    else:
        files = render_dashboards(configuration)
    try:
        for path in write_files(files, out):
            click.echo(path)
    except OSError as error:
        click.echo(
            f"cannot write to {out}: {error.strerror}; --out must name a directory that is writable "
            f"for user {os.geteuid()}, or can be created",
            err=True,
        )
        sys.exit(UNUSABLE)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
