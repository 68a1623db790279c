"""The synthetic message, its copies, and reports about it."""
