"""An Alertmanager for tests, a receiver that records notifications, and amtool."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from tests.real_servers.process import HTTP, Daemon, free_port, require


class Receiver:
    """Accepts Alertmanager's webhooks, and knows each receiver's firing alerts from the latest notification.

    A notification lists all alerts of its group that are not inhibited, so for the receiver others are over.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], list[dict[str, str]]] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(self.path.strip("/"), json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def take(self, whom: str, told: dict[str, object]) -> None:
        """Record a webhook's body."""
        with self._lock:
            firing = [alert["labels"] for alert in told["alerts"] if alert["status"] == "firing"]
            self._groups[whom, told["groupKey"]] = firing

    def firing(self, whom: str, alert: str) -> list[dict[str, str]]:
        """Return the labels of each firing alert with that name for a receiver."""
        return [labels for labels in self._told(whom) if labels["alertname"] == alert]

    def names(self, whom: str) -> set[str]:
        """Return the names of all firing alerts for a receiver."""
        return {labels["alertname"] for labels in self._told(whom)}

    def _told(self, whom: str) -> list[dict[str, str]]:
        with self._lock:
            return [labels for (who, _), group in self._groups.items() if who == whom for labels in group]

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Alertmanager:
    """Runs with mailsonde's example, with shorter times and the test's receiver."""

    def __init__(self, directory: Path, example: Path, receiver: Receiver) -> None:
        program = require("prometheus-alertmanager", "prometheus-alertmanager")
        directory.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load(example.read_text().replace("127.0.0.1:9095", f"127.0.0.1:{receiver.port}"))
        config["route"] |= {"group_wait": "0s", "group_interval": "1s"}
        (directory / "alertmanager.yaml").write_text(yaml.safe_dump(config))
        self.port = free_port()
        self._daemon = Daemon(
            [
                program,
                f"--config.file={directory / 'alertmanager.yaml'}",
                f"--storage.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--cluster.listen-address=",
            ],
            directory / "alertmanager.log",
            ports=[self.port],
        )

    def active(self, whom: str) -> set[str]:
        """Return the names of the alerts that fire for a receiver and are not inhibited."""
        return {labels["alertname"] for labels in self._active(whom)}

    def probes(self, whom: str, alert: str) -> set[str]:
        """Return the probes with an alert that fires for a receiver and is not inhibited."""
        return {labels["probe"] for labels in self._active(whom) if labels["alertname"] == alert}

    def _active(self, whom: str) -> list[dict[str, str]]:
        query = {"receiver": whom, "inhibited": "false", "active": "true"}
        found = HTTP.get(f"http://127.0.0.1:{self.port}/api/v2/alerts", params=query)
        return [alert["labels"] for alert in found.raise_for_status().json()]

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()


def amtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run amtool and return its output."""
    return subprocess.run(
        [require("amtool", "prometheus-alertmanager"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
