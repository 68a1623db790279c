"""A Prometheus for tests, and promtool."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.real_servers.process import PATIENCE, Daemon, free_port, require, wait_until

_BLOCKS = re.compile(r"^prometheus_tsdb_blocks_loaded [1-9]", re.MULTILINE)


class Prometheus:
    """Runs with the test's configuration file, and further options, and answers queries."""

    def __init__(self, directory: Path, config: Path, *options: str) -> None:
        program = require("prometheus", "prometheus")
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self._log = directory / "prometheus.log"
        self._data = directory / "data"
        self._daemon = Daemon(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={self._data}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
                "--rules.alert.resend-delay=1s",
                *options,
            ],
            self._log,
            ports=[port],
        )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60.0)
        # It listens before it has read its data, and answers 503 until then.
        wait_until(lambda: self._client.get("/-/ready").is_success, "Prometheus is ready", log=self._log)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._daemon.process.pid

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of an instant query."""
        answer = self._get("/query", query=promql)
        if answer["resultType"] == "scalar":
            return [({}, float(answer["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in answer["result"]]

    def query_range(
        self, promql: str, window: float, step: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return labels and points (unix seconds, value) of each series over the last ``window`` seconds."""
        now = time.time()
        times = {"start": f"{now - window:.3f}", "end": f"{now:.3f}", "step": f"{max(1.0, step):.3f}"}
        answer = self._get("/query_range", query=promql, **times)
        return [
            (series["metric"], [(float(at), float(value)) for at, value in series["values"]])
            for series in answer["result"]
        ]

    def alerts(self, state: str = "firing") -> dict[str, dict[str, Any]]:
        """Return the alerts in a state, by name."""
        return {a["labels"]["alertname"]: a for a in self._get("/alerts")["alerts"] if a["state"] == state}

    def record(self, rules: Path, since: float) -> None:
        """Record what these rules would have recorded since then (unix seconds), and wait until it is read.

        Prometheus looks for it once a minute.
        """
        times = [f"--start={since:.0f}", f"--end={time.time():.0f}"]
        places = [f"--url={self._client.base_url}", f"--output-dir={self._data}"]
        made = promtool("tsdb", "create-blocks-from", "rules", *times, *places, rules)
        assert made.returncode == 0, made.stdout + made.stderr
        wait_until(lambda: _BLOCKS.search(self._client.get("/metrics").text), "they are read", 150.0)

    def write(self, request: bytes) -> None:
        """Take in a request of remote write, compressed with Snappy; an option must admit that."""
        headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"}
        self._client.post("/api/v1/write", content=request, headers=headers).raise_for_status()

    def reload(self) -> None:
        """Read the configuration again."""
        self._daemon.process.send_signal(signal.SIGHUP)

    def rule_groups(self) -> set[str]:
        """Return the names of the loaded rule groups."""
        return {group["name"] for group in self.evaluations()}

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the rule groups, each with its rules and the seconds that their last evaluation took."""
        groups: list[dict[str, Any]] = self._get("/rules")["groups"]
        return groups

    def alertmanagers(self) -> list[str]:
        """Return the addresses of the Alertmanagers in use."""
        return [one["url"] for one in self._get("/alertmanagers")["activeAlertmanagers"]]

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def wait_until(
        self, condition: Callable[[Prometheus], object], what: str, seconds: float = PATIENCE
    ) -> None:
        """Return once ``condition`` is true for this Prometheus."""
        wait_until(lambda: condition(self), what, seconds, self._log)

    def stop(self) -> None:
        """End the server."""
        self._client.close()
        self._daemon.stop()


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool and return its output."""
    command = [require("promtool", "prometheus"), *arguments]
    environment = {**os.environ, "GOGC": "400"}  # a fifth less processor time, for memory
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
