"""``mailsonde schema``."""

from __future__ import annotations

import json

import click

from monitor.config.json_schema import configuration_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors.

    Editors use it to complete and check the YAML file.

    \b
    Examples:
      mailsonde schema > mailsonde.schema.json

    \b
    For the YAML language server, save it like this and begin the configuration with:
      # yaml-language-server: $schema=mailsonde.schema.json
    """
    click.echo(json.dumps(configuration_schema(), indent=2))
