"""Files that block whoever reads them, or never end, are refused wherever a configuration names one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.config.load import ConfigurationError, load
from probes.core.faults import ProbeFault
from probes.oauth2.stored_token import StoredToken
from probes.protocols import tls

MX = "probes: [{name: mx, kind: mx, domain: a.example}]\n"
BOX = "mailboxes: {box: {address: a@a.example, username: a, server: pop, password: {file: FILE}}}\n"
POP = "{protocol: pop3, host: a.example"
OAUTH2 = "oauth2: {x: {provider: microsoft, tenant: a.example, client_id: b, certificate: {file: FILE}}}\n"
GOOGLE = "oauth2: {x: {provider: google, service_account: {file: FILE}, subject: a@a.example}}\n"
NAMED = {
    "include": "include: [FILE]\n" + MX,
    "items": "probes: [{for_each: {d: {file: FILE}}, name: '${d}', kind: mx, domain: a.example}]\n",
    "secret": BOX + f"servers: {{pop: {POP}}}}}\n" + MX,
    "key": "agent: {token_key: {file: FILE}}\n" + MX,
    "authorities": f"servers: {{pop: {POP}, tls_ca: FILE}}}}\n" + MX,
    "certificate": OAUTH2 + MX,
    "service account": GOOGLE + MX,
}


@pytest.fixture(params=["pipe", "device", "folder", "huge"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a file that must not be read to its end; whoever tries is interrupted."""
    path = tmp_path / "named"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "huge":
            path.touch()
            os.truncate(path, 10**12)  # it takes no place on the disk

    def interrupted(*_: object) -> None:
        raise AssertionError("the file is being read")

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.alarm(30)
    yield path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def told(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
def test_files_that_a_configuration_names(tmp_path: Path, file: Path, named: str) -> None:
    """The line that names the file is told, and why it cannot be used."""
    path = tmp_path / "site.yaml"
    path.write_text("# the first line\n" + named.replace("FILE", str(file)))
    mistake = told(path)
    assert mistake.startswith(f"{path}:2: ")
    assert any(why in mistake for why in ("is no regular file", "Is a directory", "is longer than"))


def test_configurations_themselves(tmp_path: Path, file: Path) -> None:
    """So is the configuration itself, the web configuration, and a file that this one names."""
    assert told(file).startswith(f"{file}: ")
    site, web = tmp_path / "site.yaml", tmp_path / "web.yml"
    site.write_text(f"agent: {{web_config: {file}}}\n" + MX)
    assert told(site).startswith(f"{file}: ")
    site.write_text(f"agent: {{web_config: {web}}}\n" + MX)
    web.write_text(f"tls_server_config:\n  cert_file: {file}\n  key_file: {file}\n")
    assert told(site).startswith(f"{web}:2: tls_server_config.cert_file: file {file} cannot be read")


def test_files_that_are_read_later(file: Path) -> None:
    """Files that are read again during operation are a fault of ours, and the event loop goes on."""
    with pytest.raises(ValueError, match="cannot be read"):
        StoredToken(file).read()
    with pytest.raises(ProbeFault, match="cannot be used"):
        tls.client_context(file)


def test_tokens_replace_files_only(file: Path) -> None:
    """A token is stored in a file or not at all: as root it would replace a device for everybody."""
    before = file.stat().st_ino
    if file.is_file():
        StoredToken(file).write("token")
        assert StoredToken(file).read() == "token"
        return
    with pytest.raises(OSError, match=r"is no regular file|Is a directory"):
        StoredToken(file).write("token")
    assert file.stat().st_ino == before
