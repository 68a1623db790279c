"""Completion in real shells: bash, zsh and fish, with the script sourced."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor.commands import main
from monitor.commands.completion import READ_LIMIT
from tests.real_servers.process import require

SITE = """\
probes:
  - {name: hq-roundtrip, kind: roundtrip}
  - {name: hq-mx, kind: mx}
  - {name: branch.smtp, kind: smtp}
"""

Complete = Callable[..., list[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH that has `mailsonde`, as after an installation, and bash."""
    programs = Path(sys.executable).parent
    assert (programs / "mailsonde").exists(), "mailsonde is not installed beside this Python"
    return {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    return path


@pytest.fixture
def complete(tmp_path: Path, environment: dict[str, str]) -> Complete:
    """Ask bash, with the script sourced, for completions of the last word of a command line."""
    script = subprocess.run(
        ["mailsonde", "completion", "bash"], capture_output=True, check=True, env=environment
    ).stdout
    (tmp_path / "mailsonde.bash").write_bytes(script)

    def ask(*words: str, **more: str) -> list[str]:
        program = """
            source "$1"; shift
            function=$(complete -p mailsonde | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
            COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
            compopt() { printf 'compopt %s %s\\n' "$@"; }
            "$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
            printf '%s\\n' "${COMPREPLY[@]}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", program, "bash", tmp_path / "mailsonde.bash", *words],
            capture_output=True,
            text=True,
            env=environment | more,
            timeout=120,
            cwd=tmp_path,
        )
        assert not done.stderr, done.stderr
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    return ask


def test_commands_and_options(complete: Complete) -> None:
    """Bash completes commands, options, their values, and files."""
    assert set(complete("mailsonde", "")) == set(main.commands)
    assert complete("mailsonde", "ch") == ["check"]
    assert complete("mailsonde", "check", "--te") == ["--textfile"]
    assert complete("mailsonde", "check", "--format", "") == ["text", "json", "nagios"]
    assert complete("mailsonde", "completion", "") == ["bash", "zsh", "fish"]
    assert complete("mailsonde", "validate", "si") == ["compopt -o default", ""]


def test_names_of_probes(complete: Complete, site: Path) -> None:
    """After --config, or with MAILSONDE_CONFIG, bash completes the probes not named yet."""
    everything = ["hq-roundtrip", "hq-mx", "branch.smtp"]
    assert complete("mailsonde", "check", "--config", str(site), "") == everything
    assert complete("mailsonde", "check", "-c", "site.yaml", "hq-") == everything[:2]
    assert complete("mailsonde", "check", "-c", str(site), "hq-mx", "") == ["hq-roundtrip", "branch.smtp"]
    assert complete("mailsonde", "check", "-c", "~/site.yaml", "br") == ["branch.smtp"]
    assert complete("mailsonde", "check", "", MAILSONDE_CONFIG=str(site)) == everything
    assert complete("mailsonde", "check", "") == []


def test_names_of_probes_in_included_files(complete: Complete, tmp_path: Path) -> None:
    """Probes of other files, and those that `for_each` makes, are completed too."""
    (tmp_path / "main.yaml").write_text("include: [part.yaml]\nprobes: [{name: own}]\n")
    (tmp_path / "part.yaml").write_text('probes: [{name: "mx-${d}", for_each: {d: [a, b]}}]\n')
    assert complete("mailsonde", "check", "-c", str(tmp_path / "main.yaml"), "") == ["own", "mx-a", "mx-b"]


@pytest.mark.parametrize(
    "content",
    [
        None,
        Path,
        b"",
        b"probes: {",
        b"\xff\xfe\x00\x01",
        b"probes: 3",
        b"probes: [3, {}, {name: 4}, {name: [a]}, null]",
        b"- a",
        b'probes: [{name: "$(touch pwned)"}, {name: "*"}, {name: "a\\nplain,b"}, {name: "\\e[31mred"}]',
    ],
    ids=["absent", "directory", "empty", "not YAML", "binary", "number", "strange", "list", "hostile"],
)
def test_bad_file_offers_nothing(complete: Complete, tmp_path: Path, content: object) -> None:
    """An invalid or malicious file causes neither names nor errors on the command line."""
    path = tmp_path / "bad.yaml"
    if content is Path:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert complete("mailsonde", "check", "--config", str(path), "") == []
    assert not (tmp_path / "pwned").exists()


def test_named_pipe_does_not_keep_the_shell_waiting(complete: Complete, tmp_path: Path) -> None:
    """A named pipe is not read, because that could block."""
    os.mkfifo(tmp_path / "pipe")
    assert complete("mailsonde", "check", "--config", str(tmp_path / "pipe"), "") == []


def test_huge_file_does_not_keep_the_shell_waiting(complete: Complete, site: Path) -> None:
    """A file that would take long to read gives no names."""
    site.write_text(SITE + "#" * (READ_LIMIT - len(SITE)))
    assert complete("mailsonde", "check", "--config", str(site), "branch") == ["branch.smtp"]
    site.write_text(SITE + "#" * READ_LIMIT)
    assert complete("mailsonde", "check", "--config", str(site), "branch") == []


@pytest.mark.parametrize("path", ["~no-such-user/site.yaml", "a\nb", "x" * 5000])
def test_impossible_path(complete: Complete, path: str) -> None:
    """An invalid path gives no names."""
    assert complete("mailsonde", "check", "--config", path, "") == []


@pytest.mark.parametrize("secret", ["{env: NO_SUCH_VARIABLE}", "{file: /nonexistent}"])
def test_names_need_no_secrets(complete: Complete, tmp_path: Path, secret: str) -> None:
    """Completion works without the agent's passwords in the shell's environment."""
    path = tmp_path / "site.yaml"
    path.write_text(SITE + f"mailboxes: {{canary: {{password: {secret}}}}}\n")
    assert complete("mailsonde", "check", "-c", str(path), "branch") == ["branch.smtp"]


@pytest.mark.parametrize(
    ("shell", "marks"),
    [
        ("bash", ("complete -o nosort -F _mailsonde_completion mailsonde",)),
        ("zsh", ("#compdef mailsonde", "compdef _mailsonde_completion mailsonde")),
        ("fish", ("complete --no-files --command mailsonde",)),
    ],
)
def test_script_is_for_mailsonde(shell: str, marks: tuple[str, ...], environment: dict[str, str]) -> None:
    """Each script registers itself for the command `mailsonde`, however it was started."""
    for command in (["mailsonde"], [sys.executable, "-m", "monitor"]):
        done = subprocess.run(
            [*command, "completion", shell], capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert all(mark in done.stdout for mark in marks)
        assert "_MAILSONDE_COMPLETE" in done.stdout


ZSH = """
autoload -Uz compinit && compinit -D -u
source $1; shift
compadd() { print -rl -- ${(P)@[-1]} }
_describe() { print -rl -- ${${(P)3}%%:*} }
_path_files() { print -r -- site.yaml }
words=("$@") CURRENT=$#
$_comps[mailsonde]
"""
"""Calls the function that the script registered, as zsh does at the last word, and prints what it adds."""

FISH = """
source $argv[1]
complete -C "$argv[2..]" | string replace -r '\\t.*' ''
"""
"""Asks fish what it offers behind a command line, without the explanations."""


@pytest.mark.parametrize(
    ("shell", "command"),
    [("zsh", ("zsh", "-f", "-c", ZSH, "zsh")), ("fish", ("fish", "--no-config", "-c", FISH))],
)
def test_other_shells(shell: str, command: tuple[str, ...], environment: dict[str, str], site: Path) -> None:
    """Zsh and fish complete commands, options, their values, files, and probe names."""
    require(shell, shell)
    script = site.with_name(f"mailsonde.{shell}")
    script.write_bytes(
        subprocess.run(
            ["mailsonde", "completion", shell], capture_output=True, check=True, env=environment
        ).stdout
    )

    def offered(*words: str) -> set[str]:
        done = subprocess.run(
            [*command, script, "mailsonde", *words],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            cwd=site.parent,
        )
        assert done.stderr == ""
        return set(done.stdout.splitlines())

    assert offered("") == set(main.commands)
    assert offered("check", "--te") == {"--textfile"}
    assert offered("check", "--format", "") == {"text", "json", "nagios"}
    assert offered("validate", "si") == {"site.yaml"}
    assert offered("check", "-c", "site.yaml", "hq-") == {"hq-roundtrip", "hq-mx"}
    assert offered("check", "-c", "~/site.yaml", "hq-mx", "") == {"hq-roundtrip", "branch.smtp"}
