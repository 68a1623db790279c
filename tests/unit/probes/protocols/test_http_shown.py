"""What is shown of URLs and header fields holds no secret, however oddly it is written."""

from __future__ import annotations

import pytest

from probes.protocols.http_shown import shown_field, shown_url

EXCHANGE = (
    'Bearer client_id="00000002-0000-0ff1-ce00-000000000000", trusted_issuers="00000001@*", '
    'authorization_uri="https://login.windows.net/common/oauth2/authorize"'
)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("Location", "https://x/cb?a=1;code=SECRET", "https://x/cb?(withheld)"),
        ("Location", "https://x/cb?a=1,code=SECRET", "https://x/cb?(withheld)"),
        ("Location", "https://x/cb?a='SECRET", "https://x/cb?(withheld)"),
        ("Location", 'https://x/cb?a="SECRET b=SECRET>SECRET', "https://x/cb?(withheld)"),
        ("Content-Location", "/cb#a SECRET", "/cb#(withheld)"),
        ("Location", "https://u:p@SECRET@host/", "https://host/"),
        ("Location", "https://u:SEC RET@host/a@b", "https://host/a@b"),
        ("Location", "/p;jsessionid=SECRET", "/p;jsessionid=(withheld)"),
        ("Refresh", "0; url=/cb?a=1;code='SECRET", "0; url=/cb?(withheld)"),
        ("Link", "</p?a=SECRET;SECRET>; rel=next, </q#SECRET>", "</p?(withheld)>; rel=next, </q#(withheld)>"),
        ("X-Next", '"https://u@SECRET@x/?a=SECRET", 1', '"https://x/?(withheld)", 1'),
        ("X-Said", "access_token = SECRET; a=1", "access_token = (withheld) a=1"),
        (
            "WWW-Authenticate",
            'Bearer realm="https://x/?t=SECRET", a="b"',
            'Bearer realm="https://x/?(withheld)", a="b"',
        ),
        (
            "WWW-Authenticate",
            r'Bearer a="b", token="SE\"CRET", c="d"',
            'Bearer a="b", token=(withheld), c="d"',
        ),
        ("WWW-Authenticate", "Bearer id_token=SECRET,a=b", "Bearer id_token=(withheld),a=b"),
        ("WWW-Authenticate", 'Bearer token="SECRET SECRET', "Bearer token=(withheld)"),
        ("WWW-Authenticate", "Negotiate\tSECRET==", "Negotiate\t(withheld)"),
        ("WWW-Authenticate", 'NTLM  SEC?RET"SECRET', "NTLM  (withheld)"),
        (
            "Proxy-Authenticate",
            "Basic, Other SECRET== , ntlm SECRET",
            "Basic, Other (withheld) , ntlm (withheld)",
        ),
        ("WWW-Authenticate", "Negotiate, NTLM , Basic realm=a", "Negotiate, NTLM , Basic realm=a"),
        ("WWW-Authenticate", EXCHANGE, EXCHANGE),
        ("Set-Cookie", "SECRET", "(withheld)"),
        ("Server", "Microsoft-IIS/10.0", "Microsoft-IIS/10.0"),
    ],
)
def test_field(name: str, value: str, shown: str) -> None:
    """Secrets are withheld up to where they end, and the rest of the field is shown."""
    assert shown_field(name, value) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://x/cb?a=1;code=SECRET", "https://x/cb"),
        ("https://u:p@SECRET@host/p", "https://host/p"),
        ("https://host/p;jsessionid=SECRET?a", "https://host/p;jsessionid=(withheld)"),
    ],
)
def test_url(url: str, shown: str) -> None:
    """A URL is shown without all that may hold a secret."""
    assert shown_url(url) == shown
