"""The sandbox's delays and losses, its mailbox, and a POP3 session's view of it."""

import statistics
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from monitor.demo.sandbox_mail import MAILBOX_MESSAGES, MESSAGE_LIMIT, Maildrop, PostOffice, Transit, top

MESSAGE = b"Subject: hello\r\n\r\nbody\r\n"


class Later:
    """Replaces the reactor's clock: scheduled calls wait until the test runs them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        self.waiting.append((seconds, function))

    def run_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for _, function in waiting:
            function()


def transit(seed: int, **settings: float) -> Transit:
    return Transit(Random(seed), **settings)  # noqa: S311 - decides delays, guards nothing


def office(later: Later, *, loss: float = 0.0) -> PostOffice:
    return PostOffice(transit(1, loss=loss), later)


class TestTransit:
    def test_delays_stay_in_bounds_and_have_slow_spells(self) -> None:
        """All delays are in shortest..slowest, and only a few are above the usual longest."""
        way = transit(7, loss=0.0, shortest=0.05, longest=3.0, slowest=8.0)
        delays = [delay for _ in range(5000) if (delay := way.next_delay()) is not None]
        assert len(delays) == 5000
        assert min(delays) >= 0.05
        assert 3.0 < max(delays) <= 8.0
        assert 0.01 < sum(delay > 3.0 for delay in delays) / 5000 < 0.2

    def test_delays_wander(self) -> None:
        """Successive delays are close together, but over time they cover the whole range."""
        way = transit(7, loss=0.0, shortest=0.0, longest=1.0, slowest=1.0)
        delays = [delay for _ in range(5000) if (delay := way.next_delay()) is not None and delay < 1.0]
        steps = [abs(b - a) for a, b in pairwise(delays)]
        assert statistics.median(steps) < 0.1
        assert min(delays) < 0.05
        assert max(delays) > 0.95

    def test_equal_seeds_give_equal_sequences(self) -> None:
        """A demo can be repeated exactly."""
        first, second = (transit(3, loss=0.2) for _ in range(2))
        assert [first.next_delay() for _ in range(200)] == [second.next_delay() for _ in range(200)]

    def test_loss_is_about_as_frequent_as_asked(self) -> None:
        """A loss of 1/25 loses about one message in twenty-five."""
        way = transit(5, loss=0.04)
        assert 300 < sum(way.next_delay() is None for _ in range(10_000)) < 500

    @pytest.mark.parametrize(
        "wrong", [{"loss": 1.5}, {"shortest": -1.0}, {"longest": 9.0}, {"shortest": 5.0, "longest": 1.0}]
    )
    def test_impossible_settings_are_refused(self, wrong: dict[str, float]) -> None:
        """A probability above 1 and delays out of order are refused."""
        with pytest.raises(ValueError, match=r"is not a probability|do not rise"):
            transit(1, **wrong)


class TestPostOffice:
    def test_a_message_is_visible_after_its_transit_and_not_before(self) -> None:
        """An accepted message is not visible before its transit time."""
        later = Later()
        post = office(later)
        post.accept(MESSAGE)
        assert not post.mailbox
        assert [0.05 <= seconds <= 8.0 for seconds, _ in later.waiting] == [True]
        later.run_all()
        assert list(post.mailbox.values()) == [MESSAGE]

    def test_with_certain_loss_nothing_is_ever_on_its_way(self) -> None:
        """A lost message is accepted but not stored, and never arrives."""
        later = Later()
        post = office(later, loss=1.0)
        for _ in range(MAILBOX_MESSAGES + 1):
            post.accept(MESSAGE)
        assert not later.waiting
        assert not post.mailbox
        assert not post.full

    def test_it_is_full_at_its_cap_and_no_longer_after_a_deletion(self) -> None:
        """Messages in transit count towards the maximum, so memory is bounded."""
        later = Later()
        post = office(later)
        for _ in range(MAILBOX_MESSAGES):
            assert not post.full
            post.accept(b"\r\n")
        assert post.full
        later.run_all()
        post.delete(next(iter(post.mailbox)))
        assert not post.full

    def test_large_messages_fill_it_too(self) -> None:
        """Total octets are limited too, and a deletion frees them."""
        later = Later()
        post = office(later)
        message = b"x" * MESSAGE_LIMIT
        for _ in range(32):
            assert not post.full
            post.accept(message)
        assert post.full
        later.run_all()
        post.delete(next(iter(post.mailbox)))
        assert not post.full

    def test_a_maildrop_is_a_snapshot_and_deletes_at_commit(self) -> None:
        """Later arrivals are not visible, and a marked message stays until the session commits."""
        later = Later()
        post = office(later)
        post.accept(MESSAGE)
        later.run_all()
        drop = Maildrop(post)
        post.accept(MESSAGE)
        later.run_all()
        drop.mark(1)
        assert drop.listed() == []
        assert len(post.mailbox) == 2
        drop.commit()
        assert len(post.mailbox) == 1

    @pytest.mark.parametrize(
        ("message", "lines", "expected"),
        [
            (b"A: b\r\n\r\none\r\ntwo\r\n", 0, b"A: b\r\n\r\n"),
            (b"A: b\r\n\r\none\r\ntwo\r\n", 1, b"A: b\r\n\r\none\r\n"),
            (b"A: b\r\n\r\none\r\n\r\n", 9, b"A: b\r\n\r\none\r\n\r\n"),
            (b"A: b\r\n\r\n", 3, b"A: b\r\n\r\n"),
            (b"A: b\r\n", 3, b"A: b\r\n"),
        ],
    )
    def test_top_gives_the_header_and_that_many_lines(
        self, message: bytes, lines: int, expected: bytes
    ) -> None:
        """TOP returns exactly the header and the requested lines."""
        assert top(message, lines) == expected
