"""What servers write into WWW-Authenticate."""

from __future__ import annotations

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols.challenges import MOST_CHALLENGES, challenges


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], {}),
        (
            ["Negotiate, NTLM", 'Basic realm="a, b"'],
            {"negotiate": {}, "ntlm": {}, "basic": {"realm": "a, b"}},
        ),
        (
            [r'Bearer client_id="a\"b" , authorization_uri = "https://x/y",Basic'],
            {"bearer": {"client_id": 'a"b', "authorization_uri": "https://x/y"}, "basic": {}},
        ),
        (["NTLM TlRMTVNTUAAC==, Negotiate oYG2"], {"ntlm": {}, "negotiate": {}}),
        (
            ["Bearer authorization_uri=https://x/y, NTLM"],
            {"bearer": {"authorization_uri": "https://x/y"}, "ntlm": {}},
        ),
        (['realm="of nothing", NTLM'], {"ntlm": {}}),
        (["NTLM", 'realm="of another field"'], {"ntlm": {}}),
        (['=;", NTLM, Basic realm="without end'], {"ntlm": {}, "basic": {"realm": ""}}),
    ],
)
def test_challenges(fields: list[str], expected: dict[str, dict[str, str]]) -> None:
    """Schemes and parameters are read from one field or several, and what is not valid costs only itself."""
    assert {each.scheme: dict(each.parameters) for each in challenges(fields)} == expected


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        (["NTLM", "Negotiate"], ["", ""]),
        (["NTLM TlRMTVNTUAAC== , Negotiate oYG2", "ntlm TlRM"], ["TlRMTVNTUAAC==", "oYG2", "TlRM"]),
        (['Digest realm="NTLM TlRM", ntlm', "Basic a=b"], ["", "", ""]),
    ],
)
def test_tokens(fields: list[str], tokens: list[str]) -> None:
    """A message that comes with a scheme is its token; a parameter is none."""
    assert [each.token for each in challenges(fields)] == tokens


def test_too_many() -> None:
    """Thousands of challenges are a fault of the server."""
    assert len(challenges(["NTLM"] * MOST_CHALLENGES)) == MOST_CHALLENGES
    with pytest.raises(ProbeFault) as caught:
        challenges(["NTLM"] * (MOST_CHALLENGES + 1))
    assert caught.value.reason is Reason.PROTOCOL_ERROR
