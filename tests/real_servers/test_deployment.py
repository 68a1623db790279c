"""Deployment files: their references exist, their commands work, and their formats are valid."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from monitor.config.load import load
from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import free_port, require
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.site import MAILSONDE, Site

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "config/deploy"
CONTAINER = DEPLOY / "container"
INSTALLED = "/opt/mailsonde/bin/mailsonde"

CONFINED = (
    *("unshare", "--mount", "sh", "-c"),
    'mount --bind "$0" "$0" && mount -o remount,bind,ro / && '
    'exec unshare --user --map-user=65532 --map-group=65532 "$@"',
)
"""Runs a command as user 65532, on a root that is read-only but for the directory that comes first."""


@pytest.fixture
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    with Site(server_directory("deployed"), server_tls) as running:
        yield running


def _unit_value(unit: Path, key: str) -> str:
    (value,) = re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)
    return str(value)


def test_units_are_what_systemd_takes(tmp_path: Path) -> None:
    """The units are valid for systemd, once their program exists."""
    require("systemd-analyze", "systemd")
    program = tmp_path / "mailsonde"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copies = []
    for unit in (DEPLOY / "systemd").iterdir():
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(unit.read_text().replace(INSTALLED, str(program)))
    done = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["mailsonde.service", "mailsonde-check.service"])
def test_units_are_exposed_to_as_little_as_documented(unit: str) -> None:
    """The unit's exposure, on systemd's scale from 0 to 10, is at most what docs/deployment.md says."""
    (documented,) = re.findall(rf"`{unit}` ([\d.]+)", (ROOT / "docs/deployment.md").read_text())
    threshold = f"--threshold={float(documented) * 10:.0f}"
    command = ["systemd-analyze", "security", "--offline=true", threshold, "--no-pager"]
    done = subprocess.run([*command, DEPLOY / "systemd" / unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]


def test_the_units_command_runs_unprivileged_on_a_read_only_root(site: Site) -> None:
    """The unit's command, as another user with one writable directory, becomes ready and stops cleanly."""
    unit = DEPLOY / "systemd/mailsonde.service"
    state = site.directory / "state"
    state.mkdir()
    site.config.write_text(
        site.config.read_text().replace(f"{site.directory}/ledger.db", f"//{state}/ledger.db")
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(site.directory / "notify"))
        told.settimeout(120)
        _, *arguments = shlex.split(
            _unit_value(unit, "ExecStart").replace("/etc/mailsonde/mailsonde.yaml", str(site.config))
        )
        command = [*CONFINED, state, *MAILSONDE, *arguments]
        environment = {"NOTIFY_SOCKET": str(site.directory / "notify"), "PYTHONDONTWRITEBYTECODE": "1"}
        with (site.directory / "agent.log").open("wb") as log:
            agent = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(told, "READY=1")
            ready = httpx.get(f"http://127.0.0.1:{site.port}/-/ready", trust_env=False)
            assert ready.status_code == 200
            assert _healthcheck(site.port) == 0
            agent.send_signal(signal.SIGTERM)
            _wait_for(told, "STOPPING=1")
            assert agent.wait(int(_unit_value(unit, "TimeoutStopSec"))) == 0
        finally:
            agent.kill()
            agent.wait()
    assert (state / "ledger.db").exists()
    assert _healthcheck(site.port) != 0


def _wait_for(told: socket.socket, line: str) -> None:
    """Read notifications until one has ``line``."""
    while line not in told.recv(1000).decode().splitlines():
        pass


def _healthcheck(port: int) -> int:
    """Return the status of the container's health check, run here against ``port``."""
    _, *arguments = _image_health_command()
    command = [*MAILSONDE, *arguments, f"127.0.0.1:{port}"]
    return subprocess.run(command, capture_output=True, check=False, env={}).returncode


def _image_health_command() -> list[str]:
    (words,) = re.findall(
        r"CMD (\[\"mailsonde\", .*\])$", (CONTAINER / "Containerfile").read_text(), re.MULTILINE
    )
    return list(yaml.safe_load(words))


def test_compose_has_the_images_health_check() -> None:
    """Compose has the image's health check, which the OCI image format drops."""
    check = yaml.safe_load((CONTAINER / "compose.yaml").read_text())["services"]["mailsonde"]["healthcheck"]
    assert check.pop("test") == ["CMD", *_image_health_command()]
    (options,) = re.findall(r"^HEALTHCHECK (.*) \\$", (CONTAINER / "Containerfile").read_text(), re.MULTILINE)
    assert check == {
        name.replace("-", "_"): yaml.safe_load(value) for name, value in re.findall(r"--(\S+)=(\S+)", options)
    }


@pytest.mark.parametrize(
    "content", [None, "probes: [{name: mx, kind: mx, domain: a b}]\n"], ids=["no", "wrong"]
)
def test_a_configuration_that_cannot_be_used_is_not_tried_again(tmp_path: Path, content: str | None) -> None:
    """The unit's only command exits with a status after which systemd does not restart it.

    That setting does not apply to an ExecStartPre, after which systemd would retry for ever.
    """
    unit = DEPLOY / "systemd/mailsonde.service"
    assert "ExecStartPre=" not in unit.read_text()
    config = tmp_path / "mailsonde.yaml"
    if content is not None:
        config.write_text(content)
    words = shlex.split(_unit_value(unit, "ExecStart").replace("/etc/mailsonde/mailsonde.yaml", str(config)))
    done = subprocess.run([*MAILSONDE, *words[1:]], capture_output=True, check=False, cwd=ROOT)
    assert str(done.returncode) in _unit_value(unit, "RestartPreventExitStatus").split(), done.stderr


def test_the_image_is_built_from_what_the_containerfile_copies(tmp_path: Path) -> None:
    """The copied files are enough to build the package, with everything in the checkout's wheel."""
    text = (CONTAINER / "Containerfile").read_text()
    assert re.search(r"^USER 65532:65532$", text, re.MULTILINE), "nothing else runs as root"
    context = tmp_path / "context"
    context.mkdir()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, context / target)
            else:
                shutil.copy(ROOT / source, context / target)
    assert _files_in_wheel(context, tmp_path / "image") == _files_in_wheel(ROOT, tmp_path / "checkout")


def _files_in_wheel(source: Path, made: Path) -> set[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", made, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = made.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_compose_file_fits_the_specification_and_names_what_is_there() -> None:
    """The compose file is valid by the specification's schema, and its mounts from the checkout exist."""
    compose = CONTAINER / "compose.yaml"
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", compose]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    document = yaml.safe_load(compose.read_text())
    users = {"dashboards", "canary-password"}  # what users must put there, by the comment
    for name, service in document["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("."):
                assert Path(source).name in users or (CONTAINER / source).resolve().exists(), mount


def test_containers_configurations_are_valid(tmp_path: Path) -> None:
    """Prometheus and mailsonde accept the configurations that their containers are given."""
    require("promtool", "prometheus")
    config = CONTAINER / "prometheus.yml"
    subprocess.run(["promtool", "check", "config", "--syntax-only", config], check=True, capture_output=True)
    _require_valid((CONTAINER / "mailsonde.yaml").read_text(), tmp_path)
    here, others = (
        yaml.safe_load(path.read_text())["datasources"][0]
        for path in (
            CONTAINER / "grafana-datasource.yaml",
            ROOT / "dashboards/provisioning/datasources/mailsonde.yaml",
        )
    )
    assert {**here, "url": ""} == {**others, "url": ""}


def _manifests() -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes/mailsonde.yaml").read_text()))


def test_kubernetes_manifests_fit_the_schemas(tmp_path: Path) -> None:
    """Each manifest is valid by Kubernetes' schemas, and the ConfigMap's configuration by mailsonde."""
    manifest = DEPLOY / "kubernetes/mailsonde.yaml"
    command = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", manifest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {each["kind"]: each for each in _manifests()}
    _require_valid(kinds["ConfigMap"]["data"]["mailsonde.yaml"], tmp_path)
    deployment = kinds["Deployment"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    grace = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > 10  # seconds in which the agent stops cleanly


def test_the_operators_prometheus_scrapes_the_job_that_the_rules_expect(
    tmp_path: Path, start_prometheus: Callable[[Path], Prometheus]
) -> None:
    """Each pod has the job that the alert rules select, and its own address as instance."""
    monitor = yaml.safe_load((DEPLOY / "kubernetes/servicemonitor.yaml").read_text())["spec"]
    (endpoint,) = monitor["endpoints"]
    pods = {f"127.0.0.1:{free_port()}" for _ in range(2)}  # nobody answers, but `up` exists anyway
    scrape = {
        "job_name": "serviceMonitor/mailsonde/mailsonde/0",
        "scrape_interval": "1s",
        "static_configs": [{"targets": sorted(pods)}],
        "relabel_configs": [
            {"target_label": rule["targetLabel"], "replacement": rule["replacement"]}
            for rule in endpoint["relabelings"]
        ],
    }
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    prometheus = start_prometheus(config)
    prometheus.wait_until(lambda asked: len(asked.query("up")) == len(pods), "both scrapes were tried")
    assert {labels["instance"] for labels, _ in prometheus.query('up{job="mailsonde"}')} == pods
    (service,) = (each for each in _manifests() if each["kind"] == "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def _require_valid(text: str, tmp_path: Path) -> None:
    """Load a configuration without its secrets."""
    (tmp_path / "password").write_text("x")
    config = tmp_path / "mailsonde.yaml"
    config.write_text(re.sub(r"\{file: [^}]*\}", "{file: password}", text))
    assert load(config).probes
