"""An agent's metrics as Prometheus would have scraped them for hours, written to it within minutes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.real_servers.prometheus import Prometheus

RUN_EVERY = 60.0
"""Seconds between two runs of a route: its counters and results change only then."""

AT_ONCE = 500
"""The series that one request writes."""

_VARY = frozenset(
    f"mailsonde_{what}_seconds"
    for what in ("probe_phase", "hop_delay", "delivery_last", "delivery_uncertainty")
)
_TIME_OF_RUN = "mailsonde_probe_last_run_timestamp_seconds"


def write_past_hours(
    prometheus: Prometheus, address: str, until: float, seconds: float, every: float
) -> None:
    """Write what Prometheus would have scraped in the ``seconds`` up to ``until`` (unix seconds).

    Each run of a route repeats its last one, with other latencies. Prometheus must not have scraped the
    agent at ``address`` yet, and must keep at least twice as many ``seconds`` in its head.
    """
    text = httpx.get(f"http://{address}/metrics", trust_env=False, timeout=60.0).text
    times = [until - seconds + every * number for number in range(int(seconds / every))]
    target, samples = {"job": "mailsonde", "instance": address}, _Samples(times)
    series = (
        _field(1, _labels({"__name__": name, **target, **labels}) + samples(values))
        for name, labels, values in _past(text, times)
    )
    while request := b"".join(islice(series, AT_ONCE)):
        prometheus.write(_snappy(request))


def _past(text: str, times: Sequence[float]) -> Iterator[tuple[str, Mapping[str, str], Sequence[float]]]:
    """Yield each series of an exposition: its name, its labels, and its values at these times."""
    every = times[1] - times[0]
    offsets = [every * quarter for quarter in range(int(RUN_EVERY / every))]  # routes run in turn
    runs = [[1 + int((at - times[0] + offset) / RUN_EVERY) for at in times] for offset in offsets]
    number = 0
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            number += 1
            quarter = number % len(runs)
            if family.type in ("counter", "histogram"):
                values = [value * run for run in runs[quarter]]
            elif name in _VARY:
                values = [value * (1 + (number * 31 + run * 17) % 97 / 97) for run in runs[quarter]]
            elif name == _TIME_OF_RUN:
                values = [times[0] + RUN_EVERY * (run - 1) - offsets[quarter] for run in runs[quarter]]
            else:
                values = [value] * len(times)
            yield name, labels, values


class _Samples:
    """The samples of a series in a request of remote write: values at times (unix seconds)."""

    def __init__(self, times: Sequence[float]) -> None:
        one_each = [_field(2, b"\x09" + bytes(8) + b"\x10" + _varint(round(at * 1000))) for at in times]
        self._empty = b"".join(one_each)
        self._size = len(one_each[0])

    def __call__(self, values: Sequence[float]) -> bytes:
        told, octets = bytearray(self._empty), array("d", values).tobytes()
        for number in range(8):  # of a value's octets
            told[3 + number :: self._size] = octets[number::8]
        return bytes(told)


def _labels(labels: Mapping[str, str]) -> bytes:
    return b"".join(
        _field(1, _field(1, name.encode()) + _field(2, labels[name].encode())) for name in sorted(labels)
    )


def _field(number: int, octets: bytes) -> bytes:
    """Return a field of a protobuf message that has a length."""
    return bytes([number << 3 | 2]) + _varint(len(octets)) + octets


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def _snappy(octets: bytes) -> bytes:
    """Return octets in Snappy's format, as one literal: compressing them would take longer."""
    return _varint(len(octets)) + b"\xfc" + (len(octets) - 1).to_bytes(4, "little") + octets
