"""A release: reproducible, installable, described, and refused when it is not ready."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

import release

ROOT = Path(__file__).parents[1]
EPOCH = "1700000000"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return wheel and sdist."""
    return release.build(ROOT, tmp_path_factory.mktemp("dist"), EPOCH)


def test_the_sdist_builds_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever builds the sdist at another time gets the same octets."""
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again, sdist_again = release.build(source, tmp_path / "again", EPOCH)
    assert again.read_bytes() == wheel.read_bytes()
    for path in source.rglob("*.py"):
        os.utime(path)  # as if it were written just now
    _, third = release.build(source, tmp_path / "third", EPOCH)
    assert third.read_bytes() == sdist_again.read_bytes()


def test_the_wheel_installs_and_works(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In a fresh environment, the wheel has its command, its version, its data files and the demo.

    The libraries are those of the tests, because to download them again would take a minute.
    """
    environment = tmp_path / "environment"
    venv.create(environment)
    (installed,) = environment.glob("lib/python*/site-packages")
    (installed / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    programs = release.install(environment, "--no-deps", str(built[0]))
    where = [programs / "python", "-c", "import monitor; print(monitor.__file__)"]
    done = subprocess.run(where, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(installed / "monitor" / "__init__.py")
    release.try_out(programs, release.version_of(ROOT), ROOT / "config/minimal.yaml", tmp_path, 4.0)


def test_the_sbom_fits_its_schema_and_lists_the_libraries(tmp_path: Path) -> None:
    """The SBOM is valid CycloneDX 1.6 and has mailsonde's version and each library that is installed."""
    from cyclonedx.schema import SchemaVersion  # slow to import, also where the other tests are collected
    from cyclonedx.validation.json import JsonStrictValidator

    venv.create(tmp_path / "environment")
    (installed,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    for name in ("click", "pydantic", "mailsonde"):
        (metadata,) = Path(sysconfig.get_path("purelib")).glob(f"{name}-*.dist-info")
        shutil.copytree(metadata, installed / metadata.name)
    release.write_sbom(tmp_path / "environment" / "bin", ROOT, tmp_path / "sbom.json", EPOCH)
    text = (tmp_path / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    sbom = json.loads(text)
    main = sbom["metadata"]["component"]
    assert (main["name"], main["version"]) == ("mailsonde", release.version_of(ROOT))
    assert {component["name"] for component in sbom["components"]} == {"click", "pydantic"}


def test_sums_are_those_of_the_files(tmp_path: Path) -> None:
    """SHA256SUMS is what sha256sum checks, and finds a changed file."""
    (tmp_path / "a.whl").write_bytes(b"wheel")
    release.write_sums(tmp_path)
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "a.whl").write_bytes(b"another")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_what_is_not_ready_is_not_released(tmp_path: Path) -> None:
    """Changes, a changelog without the version, and a version that is tagged are each told with a remedy."""

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.test")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("## Unreleased\n\n## 1.2.01\n")
    (changed, unlisted) = release.problems(tmp_path)
    assert changed.startswith("the working tree has changes")
    assert unlisted.startswith("CHANGELOG.md has no section 1.2.0;")
    (tmp_path / "CHANGELOG.md").write_text("## Unreleased\n\n## 1.2.0 (2027-01-01)\n")
    git("add", ".")
    git("commit", "--message", "Release 1.2.0")
    assert release.problems(tmp_path) == []
    git("tag", "v1.2.0")
    (tagged,) = release.problems(tmp_path)
    assert tagged.startswith("v1.2.0 is tagged already")
