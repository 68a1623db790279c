"""Valid configurations load, and secrets stay hidden."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from monitor.commands.render import render
from monitor.commands.run import run
from monitor.commands.schema import schema
from monitor.commands.validate import validate
from monitor.config.load import ConfigurationError, load

CONFIG = Path(__file__).parents[3] / "config"
SECRET = "s3cret-of-the-test"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARY_PASSWORD", SECRET)
    (tmp_path / "canary.password").write_text(SECRET + "\n")
    path = tmp_path / "mailsonde.yaml"
    path.write_text((CONFIG / "example.yaml").read_text())
    return path


def test_minimal_example_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimal example from the README is valid as it is."""
    monkeypatch.setenv("CANARY_PASSWORD", SECRET)
    configuration = load(CONFIG / "minimal.yaml")
    assert [probe.kind for probe in configuration.probes] == ["roundtrip"]
    assert configuration.servers["submission"].port == 587
    assert configuration.servers["pop"].port == 995


def test_full_example_is_valid_and_has_every_kind(example: Path) -> None:
    """The full example has every kind of probe, and every setting of each."""
    from probes.registry import KINDS

    configuration = load(example)
    assert {probe.kind for probe in configuration.probes} == set(KINDS)
    text = example.read_text()
    for kind in KINDS.values():
        for key, field in kind.settings_model.model_fields.items():
            assert f"{field.alias or key}:" in text


def test_secret_is_in_no_repr_and_no_dump(example: Path) -> None:
    """The password is read, but is in no repr, text or JSON of the configuration."""
    configuration = load(example)
    password = configuration.servers["submission"].password
    assert password is not None
    assert password.get_secret_value() == SECRET
    assert configuration.mailboxes["canary"].password.get_secret_value() == SECRET
    for shown in (repr(configuration), str(configuration), configuration.model_dump_json()):
        assert SECRET not in shown


def test_secret_is_in_no_traceback(example: Path) -> None:
    """A mistake elsewhere shows no secret, in the message or the traceback."""
    example.write_text(example.read_text().replace("kind: mx", "kind: mz"))
    with pytest.raises(ConfigurationError) as caught:
        load(example)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_secret_must_be_utf8(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that is not UTF-8 is refused with its source, a variable or a file."""
    monkeypatch.setitem(os.environb, b"CANARY_PASSWORD", b"p\xe4ss")
    (example.parent / "canary.password").write_bytes(b"p\xe4ss\n")
    with pytest.raises(ConfigurationError) as caught:
        load(example)
    told = [mistake.text for mistake in caught.value.mistakes]
    text = example.read_text().splitlines()
    lines = [n for n, line in enumerate(text, 1) if line.startswith("    password: {env: CANARY_PASSWORD}")]
    assert sorted(set(told)) == [
        f"secret file {example.parent}/canary.password is not UTF-8 text",
        "the secret in env CANARY_PASSWORD is not UTF-8 text; write it in UTF-8, or choose another. "
        f"Also used by mailboxes.staff.password (line {lines[-1]})",
    ]


def test_missing_secret_is_one_mistake(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable or file that 20 servers share is one mistake with all places."""
    monkeypatch.delenv("CANARY_PASSWORD")
    server = "{protocol: imap, host: a.example, tls: implicit, username: u, password: {%s}}"
    servers = [
        f"  s{n}: {server % ('env: CANARY_PASSWORD' if n < 20 else 'file: absent')}" for n in range(22)
    ]
    example.write_text("\n".join(["servers:", *servers, "probes: [{name: p, kind: imap, server: s0}]"]))
    with pytest.raises(ConfigurationError) as caught:
        load(example)
    variable, file = map(str, caught.value.mistakes)
    assert variable.startswith(
        f"{example}:2: servers.s0.password: environment variable CANARY_PASSWORD is not "
    )
    assert all(f"servers.s{n}.password (line {n + 2})" in variable for n in range(1, 20))
    assert file == (
        f"{example}:22: servers.s20.password: secret file {example.parent}/absent cannot be read: "
        "No such file or directory. Also used by servers.s21.password (line 23)"
    )


def test_shipped_example_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example without its secrets lists each missing one, and says how to check the rest."""
    monkeypatch.delenv("CANARY_PASSWORD", raising=False)
    path = CONFIG / "example.yaml"
    result = CliRunner().invoke(validate, [str(path)])
    assert result.exit_code == 2
    variable, file, count, hint = result.stderr.splitlines()
    assert "servers.submission.password: environment variable CANARY_PASSWORD is not set" in variable
    assert f"mailboxes.canary.password: secret file {CONFIG}/canary.password cannot be read" in file
    assert count == "2 mistakes; nothing was started"
    assert hint == "Add --no-secrets to continue without the secrets."
    result = CliRunner().invoke(validate, ["--no-secrets", str(path)])
    assert (result.exit_code, result.stderr) == (0, "")
    probes = len(yaml.safe_load(path.read_text())["probes"])
    assert result.stdout == f"{path}: valid, {probes} probes; secrets were not read\n"


def test_without_secrets_everything_else_is_checked(example: Path) -> None:
    """Without secrets, other mistakes are found, including secrets written in the file."""
    example.write_text(
        example.read_text()
        .replace("kind: mx", "kind: mz")
        .replace("    password: {env: CANARY_PASSWORD}", "    password: hunter2", 1)
        .replace("{env: CANARY_PASSWORD}", "{env: NOT_SET}")
    )
    result = CliRunner().invoke(validate, ["--no-secrets", str(example)])
    assert result.exit_code == 2
    assert "there is no kind 'mz'" in result.stderr
    assert "secrets are never written in this file" in result.stderr
    assert "2 mistakes" in result.stderr
    assert "hunter2" not in result.stderr
    assert "--no-secrets" not in result.stderr


@pytest.mark.parametrize("what", ["alerts", "dashboards", "prometheus"])
def test_render_without_secrets(example: Path, tmp_path: Path, what: str) -> None:
    """Rendering gives the same files with and without secrets, so a build machine needs none."""
    for flags, out in ((["--no-secrets"], "without"), ([], "with")):
        path = CONFIG / "example.yaml" if flags else example
        arguments = [what, "--config", str(path), "--out", str(tmp_path / out), *flags]
        assert CliRunner().invoke(render, arguments).exit_code == 0
    written = [{f.name: f.read_text() for f in (tmp_path / out).iterdir()} for out in ("with", "without")]
    assert written[0] == written[1] != {}


def test_validate_prints_all_mistakes_and_exits_2(example: Path) -> None:
    """`mailsonde validate` lists every mistake with its line, and exits 2; for a valid file, 0."""
    assert CliRunner().invoke(validate, [str(example)]).exit_code == 0
    example.write_text(example.read_text().replace("kind: mx", "kind: mz").replace("587", "five"))
    result = CliRunner().invoke(validate, [str(example)])
    assert result.exit_code == 2
    assert "there is no kind 'mz'" in result.stderr
    assert "servers.submission.port" in result.stderr
    assert "2 mistakes; nothing was started" in result.stderr


def test_wrong_configuration_starts_nothing(example: Path) -> None:
    """`mailsonde run` with a mistake in its file reports it, exits 2, and creates no ledger."""
    example.write_text(
        example.read_text().replace("/var/lib/mailsonde", str(example.parent)).replace("kind: mx", "kind: mz")
    )
    result = CliRunner().invoke(run, ["--config", str(example)])
    assert result.exit_code == 2
    assert "there is no kind 'mz'" in result.stderr
    assert not (example.parent / "ledger.db").exists()


def test_missing_file_is_a_message(tmp_path: Path) -> None:
    """A missing file is reported in one line."""
    result = CliRunner().invoke(validate, [str(tmp_path / "absent.yaml")])
    assert result.exit_code == 2
    assert "absent.yaml: cannot be read: No such file or directory" in result.stderr


def test_schema_describes_the_example(example: Path) -> None:
    """The JSON Schema accepts the example's keys for each kind, and has no others than the model."""
    printed = json.loads(CliRunner().invoke(schema).stdout)
    data = yaml.safe_load(example.read_text())
    definitions = printed["$defs"]
    assert set(data) <= set(printed["properties"])
    for probe in data["probes"]:
        (matching,) = (
            definition
            for definition in definitions.values()
            if definition.get("properties", {}).get("kind", {}).get("const") == probe["kind"]
        )
        assert set(probe) <= set(matching["properties"])
        assert matching["additionalProperties"] is False


def test_texts_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file works on several machines: texts such as location and host may be variables."""
    path = tmp_path / "site.yaml"
    path.write_text(
        "agent: {location: {env: PLACE}, listen: {env: LISTEN}}\n"
        "servers: {out: {protocol: smtp, host: {env: MAIL_HOST}, tls: starttls}}\n"
        "probes:\n"
        "  - {name: smtp, kind: smtp, server: out, mail_from: {env: SENDER}}\n"
        "  - {name: mx, kind: mx, domain: {env: DOMAIN}}\n"
    )
    values = {"PLACE": "fra1", "LISTEN": "[::1]:9725", "MAIL_HOST": "a.example", "SENDER": "a@b.example"}
    for name, value in (values | {"DOMAIN": "b.example"}).items():
        monkeypatch.setenv(name, value)
    configuration = load(path)
    assert configuration.agent.location == "fra1"
    assert configuration.agent.listen == ("::1", 9725)
    assert configuration.servers["out"].host == "a.example"
    smtp, mx = (probe.model_dump() for probe in configuration.probes)
    assert (smtp["mail_from"], mx["domains"]) == ("a@b.example", ("b.example",))


def test_texts_from_the_environment_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset variable is one mistake, even without secrets, and a wrong value is refused."""
    path = tmp_path / "site.yaml"
    path.write_text(
        "agent: {location: {env: PLACE}}\n"
        "servers:\n"
        "  a: {protocol: smtp, host: {env: MAIL_HOST}, tls: starttls}\n"
        "  b: {protocol: imap, host: {env: MAIL_HOST}, tls: implicit}\n"
        "probes: [{name: smtp, kind: smtp, server: a}]\n"
    )
    monkeypatch.setenv("PLACE", "two words")
    monkeypatch.delenv("MAIL_HOST", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        load(path, secrets=False)
    place, host = map(str, caught.value.mistakes)
    assert place.startswith(f"{path}:1: agent.location: 'two words' is not a name")
    assert host == (
        f"{path}:3: servers.a.host: environment variable MAIL_HOST is not set; set it for mailsonde. "
        "Also used by servers.b.host (line 4)"
    )


def test_own_keys_hold_anchors(tmp_path: Path) -> None:
    """Top-level keys that begin with x- are for the site's own anchors."""
    path = tmp_path / "site.yaml"
    path.write_text(
        "x-every: &every {tls: implicit, timeout: 5s}\n"
        "servers:\n"
        "  a: {<<: *every, protocol: smtp, host: a.example}\n"
        "  b: {<<: *every, protocol: imap, host: b.example, timeout: 9s}\n"
        "probes: [{name: smtp, kind: smtp, server: a}]\n"
    )
    servers = load(path).servers
    assert [(server.tls, server.timeout) for server in servers.values()] == [
        ("implicit", 5.0),
        ("implicit", 9.0),
    ]
    path.write_text(path.read_text().replace("x-every", "y-every"))
    with pytest.raises(ConfigurationError, match="y-every: unknown key"):
        load(path)
    schema_of_file = json.loads(CliRunner().invoke(schema).stdout)
    assert schema_of_file["patternProperties"] == {"^x-": {}}
