"""What to do about a reason in general, where a server's reply says nothing more particular."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from probes.core.reasons import Reason

_RESOLVER = "Check the resolver that this machine uses, and its way to it."
_HOST = "Check that the host is up, and that no firewall drops the connection."
_CERTIFICATE = "Renew the certificate, and reload the service."
_FOLDER = "Correct `folder`, `junk_folder` or `sent_folder`, or create the folder."
_SERVER_LOG = "Look for the cause in the server's log."

GENERAL: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.INTERNAL: "Report it, with the traceback from the log.",
        Reason.LOCAL_RESOURCES: "Run fewer probes at a time, or raise the limit that the detail names.",
        Reason.NETWORK_UNREACHABLE: "Check the routes of this machine, and whether it has IPv4 and IPv6.",
        Reason.DNS_NXDOMAIN: "Correct the host name, or publish it in DNS.",
        Reason.DNS_NO_ADDRESS: "Publish an address record for the name, or change `family`.",
        Reason.DNS_SERVFAIL: _RESOLVER,
        Reason.DNS_REFUSED: _RESOLVER,
        Reason.DNS_TIMEOUT: _RESOLVER,
        Reason.CONNECT_REFUSED: "Start the service, or correct `host` and `port`.",
        Reason.CONNECT_TIMEOUT: _HOST,
        Reason.HOST_UNREACHABLE: _HOST,
        Reason.TLS_HANDSHAKE: "Check the server's TLS versions, and that `tls` fits the port.",
        Reason.TLS_NOT_OFFERED: "Give the server a certificate and turn TLS on, or correct `port` and `tls`.",
        Reason.TLS_INJECTION: "Find out what changes the traffic between this machine and the server.",
        Reason.CERTIFICATE_EXPIRED: _CERTIFICATE,
        Reason.CERTIFICATE_EXPIRING: _CERTIFICATE,
        Reason.CERTIFICATE_UNTRUSTED: "Let the server send its intermediate certificates, or set `tls_ca`.",
        Reason.CERTIFICATE_NOT_YET_VALID: "Check this machine's clock, and the dates of the certificate.",
        Reason.CERTIFICATE_WEAK: "Replace the certificate by one with a stronger key and signature.",
        Reason.CERTIFICATE_NAME: (
            "Add the name to the certificate, or connect under a name that it has. Entries of `servers` can "
            "have it as `tls_server_name`."
        ),
        Reason.LOGIN_REFUSED: "Look for the cause in the server's log of logins.",
        Reason.AUTH_FAILED: "Correct the credentials, and check that the account is not locked.",
        Reason.TOKEN_UNAVAILABLE: "Check the way to the token endpoint, and the `proxy` in `oauth2`.",
        Reason.TOKEN_REFUSED: "Correct the `oauth2` entry, or renew its secret or certificate.",
        Reason.TICKET_UNAVAILABLE: "Check the KDC, the way to it, and this machine's krb5.conf.",
        Reason.TICKET_REFUSED: "Register the service in the realm, or correct clock or krb5.conf here.",
        Reason.AUTH_NOT_OFFERED: "Set `auth` to a mechanism that the server offers, or turn TLS on.",
        Reason.AUTH_DISABLED: "Use OAuth2, or turn this kind of login on for the account.",
        Reason.NOT_GRANTED: "Give the account the right to the mailbox.",
        Reason.MAINTENANCE: "Wait for the end of the work, or set a `maintenance` window for it.",
        Reason.THROTTLED: "Raise `interval`, or lower `polls_per_message` or `max_connections`.",
        Reason.BACK_PRESSURE: "Free disk space and memory on the server, and look at its queues.",
        Reason.PROXY_FAILURE: "Check the services behind the front end, and how it resolves their names.",
        Reason.VERSION_BLOCKED: "Update the Exchange server that hands the mail over to Exchange Online.",
        Reason.DIRECT_SEND_REFUSED: (
            "Submit with a login, or add an inbound connector for this machine's address or certificate."
        ),
        Reason.FEATURE_MISSING: "Turn the feature on, or take it out of `expect_features`.",
        Reason.POP3_IN_USE: "Use a mailbox that no other client opens.",
        Reason.POP3_LOGIN_DELAY: "Lower `polls_per_message` or `logins_per_minute`.",
        Reason.POP3_SYS_TEMP: _SERVER_LOG,
        Reason.POP3_SYS_PERM: _SERVER_LOG,
        Reason.IMAP_IN_USE: "Use a mailbox that no other client opens.",
        Reason.IMAP_UNAVAILABLE: _SERVER_LOG,
        Reason.IMAP_NO_FOLDER: _FOLDER,
        Reason.GRAPH_UNAVAILABLE: "Look at the service health of Exchange Online.",
        Reason.GRAPH_NO_MAILBOX: "Correct the address, or license and create the mailbox.",
        Reason.GRAPH_NOT_FOUND: _FOLDER,
        Reason.HTTP_STATUS: "Look for the cause in the web server's log, or correct `expect_status`.",
        Reason.HTTP_UNAVAILABLE: "Look for the cause in the log of the web server and the application.",
        Reason.REDIRECT_REFUSED: "Correct the redirect on the server, or `expect_redirect`.",
        Reason.REDIRECT_LOOP: "Find the rules on server and load balancer that redirect to each other.",
        Reason.EXCHANGE_UNHEALTHY: (
            "Look for inactive components with Get-ServerComponentState, and at the directory's application "
            "pool on the server."
        ),
        Reason.EXCHANGE_WRONG_SERVER: (
            "Correct `address` or `fqdn`: the address may lead to a load balancer, or to another server."
        ),
        Reason.EXCHANGE_OLD_BUILD: "Install the current update on the server.",
        Reason.AUTODISCOVER_MISSING: (
            "Publish an address, alias or SRV record for autodiscover, and check its virtual directory."
        ),
        Reason.AUTODISCOVER_UNEXPECTED: "Correct the record or redirect, or add the host to `expect_hosts`.",
        Reason.AUTODISCOVER_DISAGREES: (
            "Let all steps lead to one service; if they do under different names, set `expect_hosts`."
        ),
        Reason.AUTODISCOVER_AUTH_CHANGED: (
            "Restore the authentication of the virtual directory, or correct the expected one."
        ),
        Reason.AUTODISCOVER_STEP_FAILED: "Correct the step that the finding names, or no longer publish it.",
        Reason.MESSAGE_JUNKED: "Read the filter's header fields in the message, and let the sender pass.",
        Reason.BOUNCE_NO_MAILBOX: "Correct the recipient's address, or create the mailbox.",
        Reason.BOUNCE_MAILBOX_DISABLED: "Enable the mailbox.",
        Reason.BOUNCE_MAILBOX_FULL: "Empty the mailbox or raise its quota.",
        Reason.BOUNCE_TOO_LARGE: "Raise the size limit on the route, or choose a smaller `attachment`.",
        Reason.BOUNCE_EXPIRED: "Look at the queue of the server that sent the report.",
        Reason.LEDGER_UNAVAILABLE: "Check the disk and the permissions of the ledger's file.",
    }
)
"""The remedy of each reason that has one: one sentence or two, none of it from a server."""
