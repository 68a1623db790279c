"""Help, and the errors for mistyped commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping

import click
import pytest
from click.testing import CliRunner, Result

from monitor.commands import main


def _run(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(
        main, arguments, prog_name="mailsonde", env={"MAILSONDE_CONFIG": None, **(env or {})}
    )


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _commands(below, (*path, name))


ALL = list(_commands(main))


def _found(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "mailsonde")
def test_examples_in_help_can_be_typed(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command's help has examples of that command, and its parser accepts them."""
    text = _run(*path, "--help").output
    block = re.search(r"^ *Examples:\n((?: +\S.*\n)+)", text, re.MULTILINE)
    assert block, text
    for command in map(_found, ALL):
        if not isinstance(command, click.Group):
            monkeypatch.setattr(command, "callback", lambda **_: None)
    for line in block[1].splitlines():
        words = shlex.split(re.split(" [>|] ", line)[0], comments=True)
        start = words.index("mailsonde")
        arguments = words[start + 1 :]
        assert arguments[: len(path)] == list(path)
        done = _run(*arguments, env=dict(word.split("=", 1) for word in words[:start]))
        assert done.exit_code == 0, done.output


def test_summaries_are_whole() -> None:
    """At 80 columns, the list of commands has a complete sentence for each."""
    listed = _run("--help", env={"COLUMNS": "80"}).output.partition("Commands:\n")[2].splitlines()
    assert {line.split()[0] for line in listed} == set(main.commands)
    assert [line for line in listed if line[-1] != "." or line.endswith("...")] == []


def test_help_begins_with_what_comes_first() -> None:
    """The main help's examples go from the demo and a configuration to the agent."""
    examples = re.findall(r"^    mailsonde (\w+)", _run("--help").output, re.MULTILINE)
    assert examples == ["demo", "init", "validate", "check", "run"]


def test_demo_names_its_extra() -> None:
    """The help of the demo says which additional packages it needs."""
    assert "pip install 'mailsonde[demo]'" in _run("demo", "--help").output


def test_every_option_is_explained() -> None:
    """Every option has a help text."""
    for path in ALL:
        command: click.Command = main
        for name in path:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (path, option.name)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("chek",), "check"),
        (("valdiate", "x.yaml"), "validate"),
        (("rendr", "alerts"), "render"),
        (("complete",), "completion"),
        (("check", "--confg", "x.yaml"), "--config"),
        (("check", "-c", "x.yaml", "--formt", "json"), "--format"),
        (("check", "-c", "x.yaml", "--textfil", "a.prom"), "--textfile"),
        (("render", "alerts", "--oout", "x"), "--out"),
        (("run", "--logformat", "json"), "--log-format"),
        (("--verison",), "--version"),
    ],
    ids=" ".join,
)
def test_mistyped_word_gets_a_suggestion(arguments: tuple[str, ...], suggestion: str) -> None:
    """A mistyped command or option exits 2 with the likely one."""
    result = _run(*arguments)
    assert result.exit_code == 2
    assert re.search(rf"Did you mean .*'{suggestion}'", result.stderr), result.stderr


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (("render", "alert", "-c", "x", "--out", "y"), ("alerts", "dashboards", "prometheus")),
        (("check", "-c", "x", "--format", "jsn"), ("text", "json", "nagios")),
        (("completion", "tcsh"), ("bash", "zsh", "fish")),
        (("completion",), ("bash", "zsh", "fish")),
    ],
    ids=" ".join,
)
def test_word_from_a_list(arguments: tuple[str, ...], choices: tuple[str, ...]) -> None:
    """An invalid choice exits 2 with the possible values."""
    result = _run(*arguments)
    assert result.exit_code == 2
    assert all(choice in result.stderr for choice in choices), result.stderr


@pytest.mark.parametrize("command", ["check", "run", "render"])
def test_missing_configuration(command: str) -> None:
    """Without a configuration, the error has the two ways to give one."""
    result = _run(command, *(["alerts", "--out", "x"] if command == "render" else []))
    assert result.exit_code == 2
    assert "Missing option '--config' / '-c'. Pass your configuration with it, or set " in result.stderr
    assert "MAILSONDE_CONFIG" in result.stderr


def test_configuration_from_the_environment() -> None:
    """MAILSONDE_CONFIG replaces --config."""
    result = _run("check", env={"MAILSONDE_CONFIG": "/nonexistent/site.yaml"})
    assert result.stderr.startswith("/nonexistent/site.yaml: cannot be read: No such file or directory")


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--version"], {"sqlalchemy", "pydantic", "starlette", "rich"}),
        (["validate", "config/example.yaml", "--no-secrets"], {"sqlalchemy", "starlette"}),
    ],
)
def test_a_command_loads_what_it_needs(arguments: list[str], unneeded: set[str]) -> None:
    """A command costs no other its time: to check a file takes neither a database nor a web server."""
    program = (
        f"import sys; from monitor.commands import main; main({arguments}, standalone_mode=False)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "monitor" in done.stdout.split()
    assert not unneeded & set(done.stdout.split())
