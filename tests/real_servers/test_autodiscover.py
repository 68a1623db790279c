"""The ``autodiscover`` kind with the records of a real name server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trustme

from monitor.runner import Runner
from probes.autodiscover import Autodiscover, AutodiscoverSettings
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.reasons import Reason
from probes.core.settings import Site
from tests.fakes.autodiscover import DOMAIN, EMAIL, EXCHANGE, HOST, WEB, autodiscover_site
from tests.real_servers.bind import Named
from tests.real_servers.dovecot import TlsFiles


@pytest.mark.tried("autodiscover", "BIND")
@pytest.mark.parametrize(
    ("target", "reason"), [("mail", Reason.NONE), ("gone", Reason.AUTODISCOVER_STEP_FAILED)]
)
async def test_records_of_bind(
    certificate_authority: trustme.CA,
    server_tls: TlsFiles,
    start_named: Callable[..., Named],
    target: str,
    reason: Reason,
) -> None:
    """CNAME and SRV records are followed as BIND serves them, and an SRV record of no host is told."""
    async with autodiscover_site(certificate_authority) as site:
        zone = f"""\
@ IN A {WEB}
mail IN A {EXCHANGE}
autodiscover IN CNAME mail
_autodiscover._tcp IN SRV 10 5 443 second
_autodiscover._tcp IN SRV 0 5 {site.port} {target}
"""
        named = start_named({DOMAIN: zone})
        written = {
            "name": "autodiscover",
            "kind": "autodiscover",
            "email": EMAIL,
            "port": site.port,
            "http_port": 0,
            "resolver": {"address": "127.0.0.1", "port": named.port},
            "tls_ca": str(server_tls.authority),
        }
        probe = Autodiscover(
            AutodiscoverSettings.model_validate(written), Context(SystemClock(), Site("here", {}, {}))
        )
        result = await Runner(SystemClock(), "here").run(probe)
    assert result.verdict.reason is reason
    assert result.verdict.values["cname"] == f"mail.{DOMAIN}"
    ways = result.verdict.values["ways"]
    assert isinstance(ways, list)
    led = {way["step"]: way["leads_to"] for way in ways if way["version"] == 1}
    at = {"autodiscover": HOST, "srv": f"mail.{DOMAIN}"}
    expected = {
        step: f"https://{host}:{site.port}/autodiscover/autodiscover.xml" for step, host in at.items()
    }
    assert led == {"domain": None, **expected} | ({"srv": None} if target == "gone" else {})
