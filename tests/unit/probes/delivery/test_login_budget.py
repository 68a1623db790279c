"""The budget of logins to a server that many mailboxes share."""

from __future__ import annotations

import asyncio

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.delivery.mailboxes.login_budget import BURST, LoginBudget, Standing
from tests.fakes.clock import InstantClock


async def times_of(budget: LoginBudget, clock: InstantClock, count: int) -> list[float]:
    times = []
    for _ in range(count):
        await budget.take(Standing(is_slow=False))
        times.append(clock.now)
    return times


async def test_logins_keep_to_the_rate_after_the_burst() -> None:
    """After the initial burst, no minute has more logins than the budget."""
    clock = InstantClock()
    times = await times_of(LoginBudget(60.0, clock), clock, 200)
    assert times[BURST - 1] == times[0]
    assert all(b - a >= 1.0 - 1e-9 for a, b in zip(times[BURST - 1 :], times[BURST:], strict=False))


async def test_quiet_time_earns_one_burst_and_no_more() -> None:
    """After any quiet period, only one burst is allowed."""
    clock = InstantClock()
    budget = LoginBudget(60.0, clock)
    await times_of(budget, clock, 50)
    clock.now += 86400.0
    times = await times_of(budget, clock, BURST + 1)
    assert times[BURST - 1] == times[0]
    assert times[BURST] - times[0] >= 1.0 - 1e-9


async def test_those_who_wait_are_let_through_in_their_order() -> None:
    """Waiting mailboxes log in first come, first served."""
    clock = InstantClock()
    budget = LoginBudget(60.0, clock)
    await times_of(budget, clock, BURST)
    order = []

    async def enter(number: int) -> None:
        await budget.take(Standing(is_slow=False))
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(enter(number))
    assert order == list(range(10))


@pytest.mark.parametrize(
    ("reason", "is_spent"), [(Reason.CONNECT_REFUSED, False), (Reason.AUTH_FAILED, True)]
)
async def test_server_that_is_down_uses_up_no_logins(reason: Reason, is_spent: bool) -> None:
    """A connection that fails before its login leaves the login to others; a refused login does not."""
    clock = InstantClock()
    budget = LoginBudget(60.0, clock)
    begun = clock.now
    for _ in range(2 * BURST):
        await budget.take(Standing(is_slow=False))
        with pytest.raises(ProbeFault), budget.logging_in():
            raise ProbeFault(reason, "no")
    assert (clock.now > begun) is is_spent
