"""Which mailboxes belong to an address or an account. Every message asks, so this is indexed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from probes.core.settings import MailboxSettings


class Accounts:
    """The names of the configured mailboxes by address and by account; upper and lower case are the same."""

    def __init__(self, mailboxes: Mapping[str, MailboxSettings]) -> None:
        self._by_address: defaultdict[str, list[str]] = defaultdict(list)
        self._by_account: defaultdict[str, list[str]] = defaultdict(list)
        for name, mailbox in mailboxes.items():
            address, username = mailbox.address.lower(), mailbox.username.lower()
            self._by_address[address].append(name)
            for account in {address, username}:
                self._by_account[account].append(name)

    def at(self, address: str) -> Sequence[str]:
        """Return the mailboxes with a mail address."""
        return self._by_address.get(address.lower(), ())

    def of(self, account: str) -> Sequence[str]:
        """Return the mailboxes of an account, given its login name or mail address."""
        return self._by_account.get(account.lower(), ())
