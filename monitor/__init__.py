"""The agent: commands, configuration, schedule, runner, ledger, metrics, web and rendering."""
