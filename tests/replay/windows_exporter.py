"""What windows_exporter shows of an Exchange server, with the states that our script writes for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from tests.replay.incidents import DAY, MINUTE, Effect, What

QUEUES = "windows_exchange_transport_queues_"
CERTIFICATE = "mailsonde_exchange_certificate_not_after_timestamp_seconds"
COMPONENT = "mailsonde_exchange_component_active"
COPY = "mailsonde_exchange_database_copy_healthy"
WRITTEN = "mailsonde_exchange_states_written_timestamp_seconds"

_SCRIPT_RUNS = 5 * MINUTE
_USUAL = {
    **dict.fromkeys(
        (
            f"{QUEUES}{name}"
            for name in (
                *("submission_queue_length", "external_largest_delivery", "internal_largest_delivery"),
                *("retry_mailbox_delivery", "unreachable", "poison"),
            )
        ),
        ({"name": "_total"}, 0.0),
    ),
    "windows_exchange_ldap_read_time_sec": ({"name": "w3wp"}, 1.0),
    COMPONENT: ({"component": "HubTransport"}, 1.0),
    COPY: ({"database": "DB1"}, 1.0),
    CERTIFICATE: ({"use": "SMTP"}, 90 * DAY),
}
"""Labels and value of each metric while nothing is wrong, but for the time when the script last ran."""


class WindowsExporter:
    """The exporter of one server. ``active`` returns the current effect on ``"METRIC SERVER"``, if any."""

    def __init__(self, server: str, active: Callable[[What, str, float], Effect | None]) -> None:
        self._server = server
        self._active = active
        self.labels = f'job="exchange",instance="{server}:9182"'
        """The labels that Prometheus gives its series."""

    def collect(self, now: float) -> Iterator[Metric]:
        """Yield what a scrape shows at ``now``, in seconds into the week."""
        written = {WRITTEN: ({}, now - now % _SCRIPT_RUNS)}
        for name, (labels, usual) in (_USUAL | written).items():
            of = f"{name} {self._server}"
            if self._active(What.UNSEEN, of, now) is not None:
                continue
            shown = self._active(What.SHOWN, of, now)
            own = {"server": self._server, **labels} if name.startswith("mailsonde_") else labels
            family = GaugeMetricFamily(name, "", labels=tuple(own))
            family.add_metric(tuple(own.values()), usual if shown is None else shown.value)
            yield family
