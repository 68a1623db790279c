"""The watcher's interface to mailboxes, with one module per protocol."""
