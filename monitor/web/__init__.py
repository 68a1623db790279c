"""The agent's HTTP interface."""
