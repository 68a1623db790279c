"""Sends messages and watches for their arrival."""
