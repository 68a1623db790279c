"""The wheel contains everything that an installed mailsonde needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, and unpack it like an installation."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", directory, ROOT], check=True, capture_output=True)
    (wheel,) = directory.glob("mailsonde-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "site")
    return directory / "site"


def _run(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "CANARY_PASSWORD": "x", "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-m", "monitor", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("what", ["alerts", "dashboards", "prometheus"])
def test_installed_mailsonde_renders(installed: Path, tmp_path: Path, what: str) -> None:
    """Rules, dashboards, the Prometheus configuration and the examples are in the wheel."""
    example = installed / "monitor" / "_shipped" / "config" / "minimal.yaml"
    done = _run(installed, "render", what, "--config", str(example), "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(str(path) for path in tmp_path.iterdir())
    assert list(tmp_path.iterdir())


def test_wheel_takes_only_its_own_names(installed: Path) -> None:
    """The wheel installs two packages, and no folder named config, alerts or tests."""
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"monitor", "probes"}


def test_the_live_page_is_in_the_wheel(installed: Path) -> None:
    """The wheel has the templates, scripts, styles and the licence of vendored code."""
    source = ROOT / "monitor/web"
    parts = {
        path.relative_to(source) for folder in ("static", "templates") for path in (source / folder).iterdir()
    }
    assert parts
    assert {part for part in parts if not (installed / "monitor/web" / part).exists()} == set()
