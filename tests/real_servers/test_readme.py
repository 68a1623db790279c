"""The README's commands, exactly as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.real_servers.prometheus import Prometheus

ROOT = Path(__file__).parents[2]


def test_the_files_for_prometheus_work_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Prometheus started as in step 4 loads all rendered rules and sends alerts to an Alertmanager."""
    step = re.search(r"^4\. .*?\n\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert step is not None
    *commands, last = textwrap.dedent(step[1]).splitlines()
    assert last == "prometheus --config.file=prometheus.yml"
    config = (ROOT / "config" / "minimal.yaml").read_text()
    (tmp_path / "mailsonde.yaml").write_text(config)
    for variable in re.findall(r"env: (\w+)", config):
        monkeypatch.setenv(variable, "x")
    installed = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        subprocess.run(
            shlex.split(command), check=True, cwd=tmp_path, env=os.environ | {"PATH": installed}, timeout=120
        )
    rendered = [yaml.safe_load(path.read_text()) for path in (tmp_path / "rules").iterdir()]
    groups = {group["name"] for file in rendered for group in file["groups"]}
    prometheus = Prometheus(tmp_path / "data", tmp_path / "prometheus.yml")
    try:
        prometheus.wait_until(lambda one: one.alertmanagers(), "an Alertmanager is known")
        assert prometheus.alertmanagers() == ["http://127.0.0.1:9093/api/v2/alerts"]
        assert prometheus.rule_groups() == groups
        assert len(groups) >= 3
    finally:
        prometheus.stop()
