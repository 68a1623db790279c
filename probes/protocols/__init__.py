"""Clients of the protocols that mail depends on, and their parsers."""
