"""Makes a release, as far as it goes without publishing anything: ``make release``."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
DEMO_SECONDS = 15.0
"""How long the demo must run."""

REMAINING = """\
{files}
are in {dist}. What remains is for a person:
  git tag --sign v{version} && git push origin v{version}
  gpg --detach-sign --armor {dist}/SHA256SUMS
  upload the wheel and the sdist (twine upload), and attach all files to the release of the tag"""


def problems(root: Path) -> list[str]:
    """Return a sentence for each reason not to release what is in ``root``."""
    version = version_of(root)
    found = []
    if _git(root, "status", "--porcelain"):
        found.append("the working tree has changes; commit them, or remove them")
    if not re.search(rf"^## {re.escape(version)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE):
        found.append(f"CHANGELOG.md has no section {version}; turn the section Unreleased into it")
    if _git(root, "tag", "--list", f"v{version}"):
        found.append(f"v{version} is tagged already; raise the version in pyproject.toml")
    return found


def version_of(root: Path) -> str:
    """Return the version, which pyproject.toml alone has."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def build(root: Path, dist: Path, epoch: str) -> tuple[Path, Path]:
    """Build wheel and sdist of ``root`` into ``dist``; the same source and ``epoch`` give the same octets.

    ``epoch`` is the time of all files in them, in unix seconds (SOURCE_DATE_EPOCH).
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--target", "wheel"]
    subprocess.run(
        [*command, "--directory", dist], cwd=root, env=environment, check=True, capture_output=True
    )
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return wheel, sdist


def install(environment: Path, *requirements: str) -> Path:
    """Install into a virtual environment, made if it is not there; return the folder of its programs."""
    if not environment.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    programs = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", *requirements], check=True)
    return programs


def try_out(
    programs: Path, version: str, config: Path, directory: Path, seconds: float = DEMO_SECONDS
) -> None:
    """Fail unless the installed mailsonde works: its version, a configuration, rules, and the demo."""
    environment = {"PATH": os.environ["PATH"], "CANARY_PASSWORD": "x"}

    def run(*arguments: str | Path) -> str:
        command = [programs / "mailsonde", *arguments]
        done = subprocess.run(
            command, cwd=directory, env=environment, check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            sys.exit(f"mailsonde {' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    if (shown := run("--version").split()[-1]) != version:
        sys.exit(f"the installed mailsonde is {shown}, not {version}")
    run("validate", config)
    for what in ("alerts", "dashboards"):
        run("render", what, "--config", config, "--out", directory / what)
    run("demo", "--seconds", str(seconds))


def write_sbom(programs: Path, root: Path, sbom: Path, epoch: str) -> None:
    """Write what is installed as CycloneDX JSON, valid by its schema."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--validate", "--output-reproducible"]
    subprocess.run(
        [*command, "--pyproject", root / "pyproject.toml", "--output-file", sbom, programs / "python"],
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch},
        check=True,
    )


def write_sums(dist: Path) -> None:
    """Write SHA256SUMS of all files, for ``sha256sum --check``."""
    files = sorted(path for path in dist.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (dist / "SHA256SUMS").write_text("".join(lines))


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    """Check, build, install, try out, and write the SBOM and the sums; or say why not."""
    if found := problems(ROOT):
        sys.exit("\n".join(f"not released: {problem}" for problem in found))
    version, dist = version_of(ROOT), ROOT / "dist"
    epoch = _git(ROOT, "log", "-1", "--format=%ct")
    shutil.rmtree(dist, ignore_errors=True)
    wheel, _ = build(ROOT, dist, epoch)
    with tempfile.TemporaryDirectory() as directory:
        programs = install(Path(directory) / "environment", str(wheel))
        write_sbom(programs, ROOT, dist / f"mailsonde-{version}.cdx.json", epoch)
        install(Path(directory) / "environment", f"{wheel}[demo,otlp]")
        try_out(programs, version, ROOT / "config/minimal.yaml", Path(directory))
    write_sums(dist)
    files = "\n".join(f"  {path.name}" for path in sorted(dist.iterdir()))
    print(REMAINING.format(files=files, dist=dist.name, version=version))


if __name__ == "__main__":
    main()
