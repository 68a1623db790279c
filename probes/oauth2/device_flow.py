"""The device flow (RFC 8628): a person grants access once, in a browser on any machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from probes.core.clock import Clock
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.oauth2.grants import TokenError, request
from probes.oauth2.settings import GenericOAuth2, MicrosoftOAuth2

SHORTEST_INTERVAL, USUAL_INTERVAL, LONGEST_INTERVAL = 1.0, 5.0, 60.0
"""Seconds between two requests: at least, if the provider does not say (section 3.2), and at most."""

SLOWER = 5.0
"""Seconds that ``slow_down`` adds (section 3.5)."""

LONGEST_WAIT = 1800.0
"""Maximum seconds to wait for the person."""

_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What to show the person: the page to open, and the code to enter there within ``lifetime`` seconds."""

    page: str
    user_code: str
    lifetime: float
    interval: float
    device_code: str = field(repr=False)


class DeviceFlow:
    """One login with ``settings``, which have a token file."""

    def __init__(self, settings: MicrosoftOAuth2 | GenericOAuth2, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._client = {"client_id": settings.client_id}
        if settings.client_secret is not None:
            self._client["client_secret"] = settings.client_secret.get_secret_value()

    async def begin(self) -> DeviceCode:
        """Ask the provider for a code; raises `ProbeFault`."""
        form = self._client | {"scope": self._settings.scope("mail")}
        answer = await self._request(cast("str", self._settings.device_endpoint), form)
        page = answer.get("verification_uri", answer.get("verification_url"))  # Google writes the latter
        codes = answer.get("user_code"), answer.get("device_code")
        if not all(isinstance(text, str) and text for text in (page, *codes)):
            raise ProbeFault(Reason.TOKEN_UNAVAILABLE, "the answer has no code or no page to enter it")
        return DeviceCode(
            legible(str(page), 200),
            legible(str(codes[0]), 100),
            min(_seconds(answer.get("expires_in"), 900.0), LONGEST_WAIT),
            min(max(_seconds(answer.get("interval"), USUAL_INTERVAL), SHORTEST_INTERVAL), LONGEST_INTERVAL),
            str(codes[1]),
        )

    async def refresh_token(self, code: DeviceCode) -> str:
        """Wait until the person has entered the code, and return the refresh token.

        Raises `ProbeFault` if the person declines or the code expires. A request that fails is repeated.
        """
        form = self._client | {"grant_type": _GRANT, "device_code": code.device_code}
        ends_at, interval = self._clock.monotonic() + code.lifetime, code.interval
        last = "nobody entered the code in time"
        while self._clock.monotonic() < ends_at:
            await self._clock.sleep(interval)
            try:
                answer = await self._request(self._settings.token_endpoint, form)
            except TokenError as error:
                if error.code == "slow_down":
                    interval += SLOWER
                elif error.code != "authorization_pending":
                    raise
                continue
            except ProbeFault as fault:
                interval, last = min(2 * interval, LONGEST_INTERVAL), fault.detail
                continue
            token = answer.get("refresh_token")
            if not isinstance(token, str) or not token:
                raise ProbeFault(Reason.TOKEN_REFUSED, "the provider issued no refresh token")
            return token
        raise ProbeFault(Reason.TOKEN_REFUSED, f"the code expired: {last}")

    async def _request(self, url: str, form: dict[str, str]) -> dict[str, object]:
        return await request(self._settings, url, form, PhaseTimer(self._clock))


def _seconds(value: object, usual: float) -> float:
    """Return a number of seconds from JSON, or ``usual`` if it is none."""
    is_sound = isinstance(value, int | float) and 0 < value < 1e6
    return float(cast("float", value)) if is_sound else usual
