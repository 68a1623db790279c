"""The command line: one module per command."""

from __future__ import annotations

import click

from monitor.commands.check import check
from monitor.commands.completion import completion
from monitor.commands.demo import demo
from monitor.commands.init import init
from monitor.commands.render import render
from monitor.commands.run import run
from monitor.commands.schema import schema
from monitor.commands.validate import validate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mailsonde", prog_name="mailsonde")
def main() -> None:
    """Know within a minute when mail is late, lost or stuck, and where.

    mailsonde sends test messages through your mail servers, watches for their arrival, and exports
    the measured delivery latency to Prometheus.

    \b
    Examples:
      mailsonde demo                             # try everything on this machine
      mailsonde init                             # find your servers, write a configuration
      mailsonde validate mailsonde.yaml          # check a configuration
      mailsonde check --config mailsonde.yaml    # run every probe once, now
      mailsonde run --config mailsonde.yaml      # run the agent
    """


for command in (demo, init, run, check, validate, render, schema, completion):
    main.add_command(command)
