"""What a login by Kerberos needs on this machine and of its user name."""

from __future__ import annotations


def principal_of(username: str) -> str:
    """Return the Kerberos principal of a user name: ``user`` or ``user@REALM`` (RFC 1964 section 2.1.1).

    Realms of Active Directory are the domain's name in upper case, so ``user@example.com`` is in the realm
    EXAMPLE.COM. Raises ValueError, with what to write, for a name such as ``DOMAIN\\user``.
    """
    user, at, realm = username.partition("@")
    if not user or (at and not realm) or "@" in realm or "\\" in username:
        raise ValueError("Kerberos takes a username such as user or user@REALM")
    return f"{user}{at}{realm.upper()}"


def require_kerberos(username: str | None) -> None:
    """Raise ValueError, with what to do, if gssapi cannot be imported, or for a name without a principal."""
    if username is not None:
        principal_of(username)
    try:
        import gssapi  # noqa: F401 # an extra; only whether it is there counts
    except ImportError:
        raise ValueError(
            "Kerberos needs the package gssapi, which cannot be imported; run: pip install "
            "'mailsonde[kerberos]', which compiles it with a C compiler and libkrb5-dev"
        ) from None
