"""OAuth2 (RFC 6749): access tokens in place of passwords, for mailboxes at large providers."""
