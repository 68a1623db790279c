"""The synthetic message, and what becomes of its copy."""
