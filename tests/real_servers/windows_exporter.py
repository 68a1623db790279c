"""A double of windows_exporter at an Exchange server: text in its format, over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def _exposition() -> str:
    now = time.time()
    queues = {
        "submission_queue_length": 12,
        "internal_largest_delivery": 3,
        "external_largest_delivery": 400,
        "retry_mailbox_delivery": 5,
        "unreachable": 0,
        "poison": 1,
    }
    lines = [
        f'windows_exchange_transport_queues_{queue}{{name="{name}"}} {length * share}'
        for queue, length in queues.items()
        for name, share in (("_total", 1), ("high_priority", 0), ("normal_priority", 1))
    ]
    state = "mailsonde_exchange_"
    return "\n".join(
        [
            *lines,
            'windows_exchange_ldap_read_time_sec{name="w3wp"} 0.002',
            f'{state}component_active{{server="MBX1",component="HubTransport"}} 0',
            f'{state}component_active{{server="MBX1",component="FrontendTransport"}} 1',
            f'{state}database_copy_healthy{{server="MBX1",database="DB1"}} 1',
            f'{state}database_copy_healthy{{server="MBX1",database="DB2"}} 0',
            f'{state}certificate_not_after_timestamp_seconds{{server="MBX1",use="Auth"}} {now + 864_000:.0f}',
            f'{state}states_written_timestamp_seconds{{server="MBX1"}} {now:.0f}',
            "",
        ]
    )


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = _exposition().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def windows_exporter() -> Iterator[int]:
    """Answer scrapes on the port that this yields."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
