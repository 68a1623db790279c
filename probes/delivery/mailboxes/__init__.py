"""Mailboxes as the watcher reads them, one module a protocol."""
