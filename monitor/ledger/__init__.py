"""The durable record of every message, from intent to its final state, and of recent runs."""
