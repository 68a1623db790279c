"""The device flow: a person who is slow, declines, or never comes."""

from __future__ import annotations

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.oauth2.device_flow import DeviceFlow
from probes.oauth2.settings import MicrosoftOAuth2
from tests.fakes.clock import InstantClock
from tests.fakes.token_endpoint import answer, token_endpoint

CODE = {
    "device_code": "dev-1",
    "user_code": "ABCD-EFGH",
    "verification_uri": "https://login.example/device",
    "expires_in": 900,
    "interval": 5,
}
PENDING = answer({"error": "authorization_pending"}, 400)


def flow(url: str, clock: InstantClock) -> DeviceFlow:
    made = MicrosoftOAuth2.model_construct(
        provider="microsoft", tenant="contoso.example", client_id="app-1", authority=url, token_file="unused"
    )
    return DeviceFlow(made, clock)


async def test_person_who_takes_a_minute() -> None:
    """Requests keep the provider's interval, slow down when asked to, and end with the refresh token."""
    clock = InstantClock()
    slow_down = answer({"error": "slow_down"}, 400)
    async with token_endpoint(
        answer(CODE), PENDING, slow_down, PENDING, answer({"refresh_token": "r"})
    ) as opened:
        begun = flow(opened.url, clock)
        code = await begun.begin()
        assert (code.page, code.user_code) == ("https://login.example/device", "ABCD-EFGH")
        assert await begun.refresh_token(code) == "r"
    assert clock.now == 1000.0 + 5 + 5 + 10 + 10
    assert "offline_access" in opened.forms[0]["scope"]
    assert opened.forms[-1]["device_code"] == "dev-1"


async def test_person_who_declines() -> None:
    """A refusal ends the login with the provider's error."""
    async with token_endpoint(answer(CODE), answer({"error": "access_denied"}, 400)) as opened:
        begun = flow(opened.url, InstantClock())
        with pytest.raises(ProbeFault, match="access_denied") as caught:
            await begun.refresh_token(await begun.begin())
    assert caught.value.reason is Reason.TOKEN_REFUSED


async def test_person_who_never_comes() -> None:
    """The login ends when the code expires, even if the endpoint is down by then."""
    async with token_endpoint(answer(CODE), PENDING, answer(b"down", 503)) as opened:
        begun = flow(opened.url, clock := InstantClock())
        with pytest.raises(ProbeFault, match="the code expired: HTTP status 503"):
            await begun.refresh_token(await begun.begin())
    assert 900.0 <= clock.now - 1000.0 <= 1000.0


@pytest.mark.parametrize("left_out", ["device_code", "user_code", "verification_uri"])
async def test_answer_without_a_code(left_out: str) -> None:
    """An answer that lacks a part is a fault of the endpoint."""
    async with token_endpoint(answer({**CODE, left_out: None})) as opened:
        with pytest.raises(ProbeFault) as caught:
            await flow(opened.url, InstantClock()).begin()
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE
