"""One configuration may be many files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from monitor.config.document import FILE_LIMIT, Document, Mistake, read_document
from monitor.config.including import DEPTH_LIMIT
from monitor.config.load import ConfigurationError, load
from probes.core.regular_file import FileVersion, version_of

SERVER = "servers: {{{0}: {{protocol: smtp, host: {0}.example, tls: starttls}}}}\n"
MX = "probes: [{name: mx, kind: mx, domain: a.example}]\n"


def written(folder: Path, **files: str) -> Path:
    """Write ``files`` into ``folder``, where ``__`` in a name is a slash, and return the path of ``main``."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "main.yaml"


def told(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return str(caught.value)


def test_entries_of_all_files_are_one_configuration(tmp_path: Path) -> None:
    """Servers, mailboxes and probes of included files join, in the order of the files' names."""
    main = written(
        tmp_path,
        main="include: [conf.d/*.yaml]\n" + SERVER.format("out") + MX,
        conf__d__unread="",
    )
    written(
        tmp_path / "conf.d",
        b="probes: [{name: second, kind: smtp, server: inner}]\n",
        a=SERVER.format("inner") + "probes: [{name: first, kind: smtp, server: out}]\n",
    )
    configuration = load(main)
    assert [probe.name for probe in configuration.probes] == ["mx", "first", "second"]
    assert set(configuration.servers) == {"out", "inner"}


def test_a_pattern_may_match_nothing(tmp_path: Path) -> None:
    """An empty folder of included files is no mistake."""
    assert len(load(written(tmp_path, main="include: [conf.d/*.yaml]\n" + MX)).probes) == 1


def test_a_file_that_two_patterns_match_is_read_once(tmp_path: Path) -> None:
    """A file counts once, also through a link, so its names do not clash with themselves."""
    main = written(tmp_path, main="include: ['parts/*.yaml', parts/a.yaml]\n", parts__a=MX)
    (tmp_path / "parts" / "b.yaml").symlink_to("a.yaml")
    assert [probe.name for probe in load(main).probes] == ["mx"]


def test_paths_are_relative_to_the_file_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets of an included file are beside it, whatever the current directory is, in main and in part."""
    text = (
        "servers: {{{0}: {{protocol: imap, host: a.example, tls: implicit}}}}\n"
        "mailboxes:\n"
        "  {0}: {{address: {0}@a.example, server: {0}, username: me, password: {{file: secret}}}}\n"
    )
    main = written(
        tmp_path, main="include: [team/mail.yaml]\n" + text.format("own") + MX, team__mail=text.format("team")
    )
    (tmp_path / "secret").write_text("outer\n")
    (tmp_path / "team" / "secret").write_text("inner\n")
    for directory, path in ((tmp_path, Path("main.yaml")), (tmp_path.parent, main)):
        monkeypatch.chdir(directory)
        mailboxes = load(path).mailboxes
        found = {name: box.password.get_secret_value() for name, box in mailboxes.items() if box.password}
        assert found == {"own": "outer", "team": "inner"}


def test_a_variable_s_file_is_relative_to_its_own_file(tmp_path: Path) -> None:
    """Items and certificates that an included file names are beside it."""
    entry = 'probes: [{name: "mx-${d}", for_each: {d: {file: d.txt}}, kind: mx, domain: "${d}"}]\n'
    main = written(tmp_path, main="include: [team/a.yaml]\n", team__a=entry)
    (tmp_path / "team" / "d.txt").write_text("# ours\n\n  a.example  \r\nb.example")
    assert [probe.name for probe in load(main).probes] == ["mx-a.example", "mx-b.example"]


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an old and half of a new configuration never count as one."""
    main = written(tmp_path, main="include: [a.yaml, b.yaml]\n", a=MX, b=SERVER.format("out"))
    read = read_document

    def read_and_change(path: Path, **options: object) -> Document | Mistake:
        document = read(path, **options)  # type: ignore[arg-type] # passed on as they are
        if path.name == "b.yaml":
            (tmp_path / "a.yaml").write_text(MX + "# saved again\n")
        return document

    monkeypatch.setattr("monitor.config.including.read_document", read_and_change)
    assert told(main) == f"{tmp_path}/a.yaml: changed while it was read; read it again when it is complete"


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an editor has half written does not count."""
    main = written(tmp_path, main=MX)

    def grown(file: Path | int) -> FileVersion | None:
        found = version_of(file)
        with main.open("a") as more:
            more.write("# more\n")
        return found

    monkeypatch.setattr("monitor.config.document.version_of", grown)
    assert "changed while it was read" in told(main)


def test_the_limit_of_size_is_that_of_all_files_together(tmp_path: Path) -> None:
    """Many files hold no more than one may."""
    part = "#" * (FILE_LIMIT // 2)
    main = written(
        tmp_path, main="include: [a.yaml, b.yaml]\n" + MX, a=f"x-a: 1\n{part}", b=f"x-b: 1\n{part}"
    )
    assert f"{tmp_path}/b.yaml is longer than" in told(main)


def test_a_long_chain_of_files_ends(tmp_path: Path) -> None:
    """Files that each include the next are read to a limit, not until the stack overflows."""
    chain = {f"f{at}": f"include: [f{at + 1}.yaml]\n" for at in range(DEPTH_LIMIT + 2)}
    main = written(tmp_path, main="include: [f0.yaml]\n" + MX, **chain)
    assert f"more than {DEPTH_LIMIT} files include each other in turn" in told(main)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    """A pattern that matches a named pipe does not block."""
    main = written(tmp_path, main="include: ['*.pipe']\n" + MX)
    os.mkfifo(tmp_path / "a.pipe")
    assert "a.pipe cannot be read: it is no regular file" in told(main)


def test_a_folder_that_cannot_be_listed_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to read conf.d, its probes must not just be missing."""
    main = written(tmp_path, main="include: ['conf.d/*.yaml', '*/*.yaml', 'none/*']\n" + MX, conf__d__a="")
    (tmp_path / "conf.d").mkdir()
    scan = os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).endswith("conf.d"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scan(path)

    monkeypatch.setattr("monitor.config.including.os.scandir", refuse)
    refused = [
        f"{main}:1: include[{index}]: the folder {tmp_path}/conf.d cannot be listed" for index in (0, 1)
    ]
    assert told(main).splitlines() == [f"{line}: Permission denied" for line in refused]


@pytest.mark.parametrize("path", ["a" * 5000 + ".yaml", "none/a.yaml", "main.yaml/a.yaml"])
def test_a_file_that_cannot_be_reached_is_told(tmp_path: Path, path: str) -> None:
    """Whatever keeps a file from being read, the line that includes it is named."""
    main = written(tmp_path, main=f"include: [{path}]\n" + MX)
    assert told(main).startswith(f"{main}:1: include[0]: {tmp_path}/{path[:20]}")


def test_an_empty_part_adds_nothing(tmp_path: Path) -> None:
    """A heading without entries, before or after those of another file, is no entry and no mistake."""
    parts = "servers:\nprobes:\n"
    main = written(
        tmp_path,
        main="include: [a.yaml, b.yaml]\n" + parts,
        a=MX + SERVER.format("out"),
        b="probes:\nservers:\n",
    )
    configuration = load(main)
    assert [probe.name for probe in configuration.probes] == ["mx"]
    assert set(configuration.servers) == {"out"}


def test_files_that_all_include_each_other_are_few_mistakes(tmp_path: Path) -> None:
    """Each file of a folder that includes the whole folder is told once."""
    files = {f"f{at}": "include: ['*.yaml']\n" for at in range(30)}
    assert len(told(written(tmp_path, main="include: ['*.yaml']\n" + MX, **files)).splitlines()) <= 31
