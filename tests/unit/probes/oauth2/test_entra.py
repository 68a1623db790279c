"""Tokens for Graph by secret and by certificate, from an endpoint that verifies them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.oauth2.grants import fetch
from tests.fakes.graph.server import RESOURCE, graph_double


async def test_an_assertion_is_verified(app_pem: Path, certificate: x509.Certificate) -> None:
    """A certificate takes the place of a secret: signature, thumbprint, audience and validity are right."""
    clock = SystemClock()
    async with graph_double(clock) as graph:
        graph.entra.certificate = certificate
        settings = graph.oauth2(client_secret=None, certificate=app_pem)
        grant = await fetch(settings, "graph", "", PhaseTimer(clock), clock.time())
        claims = graph.entra.claims(grant.token, RESOURCE)
        assert claims is not None
        assert claims["roles"] == ["Mail.ReadWrite", "Mail.Send"]
        for late in (-3600.0, 7200.0):
            with pytest.raises(ProbeFault, match="token_refused") as refused:
                await fetch(settings, "graph", "", PhaseTimer(clock), clock.time() + late)
            assert "AADSTS700024" in refused.value.detail


async def test_a_wrong_secret_is_refused() -> None:
    """A secret that is not the application's is told as the provider tells it."""
    clock = SystemClock()
    async with graph_double(clock) as graph:
        with pytest.raises(ProbeFault) as refused:
            await fetch(
                graph.oauth2(client_secret=SecretStr("another one")), "graph", "", PhaseTimer(clock), 0.0
            )
        assert refused.value.reason is Reason.TOKEN_REFUSED
        assert "AADSTS7000215" in refused.value.detail
