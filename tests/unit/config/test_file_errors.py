"""Errors for files that are not a configuration, and for mistyped keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from monitor.config.document import Mistake, read_document
from monitor.config.load import ConfigurationError, load
from monitor.config.models import Configuration
from probes.core.settings import Settings
from probes.registry import KINDS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "FILE: cannot be read: No such file or directory; check its path"),
        (Path, "FILE: cannot be read: Is a directory; name the file itself, such as mailsonde.yaml in it"),
        (b"", "FILE:1: is empty, and must be a mapping with the keys agent, servers, mailboxes and probes"),
        (b"# a comment\n", "FILE:1: is empty, and must be a mapping with the keys agent, servers, mailboxes"),
        (b"- a\n", "FILE:1: must be a mapping with the keys agent, servers, mailboxes and probes"),
        (
            b"agent:\n\tlisten: x\n",
            "FILE:2: is not valid YAML: found character that cannot start any",
        ),
        (b"agent: {\n", "FILE:2: is not valid YAML: did not find expected node content"),
        (b"\xff\xfe\x00", "FILE:1: is not valid YAML: "),
        (b"a: 1\n---\nb: 2\n", "FILE:2: is not valid YAML: but found another document"),
    ],
    ids=[
        "absent",
        "directory",
        "empty",
        "comment only",
        "list",
        "tab",
        "unfinished",
        "binary",
        "two documents",
    ],
)
def test_file_that_is_no_configuration(tmp_path: Path, content: Any, told: str) -> None:
    """One sentence says what is wrong with the file, and where."""
    path = tmp_path / "site.yaml"
    if content is Path:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(caught.value).replace(str(path), "FILE").startswith(told)


def test_tab_is_told_with_its_remedy(tmp_path: Path) -> None:
    """The error for a tab says to use spaces, which YAML's own error does not."""
    path = tmp_path / "site.yaml"
    path.write_text("agent:\n\tlisten: x\n")
    mistake = read_document(path)
    assert isinstance(mistake, Mistake)
    assert mistake.text.endswith("; indent with spaces")


def test_large_file_without_aliases_is_valid(tmp_path: Path) -> None:
    """The limit is on repeated nodes: a file of 300,000 nodes without aliases is valid."""
    path = tmp_path / "site.yaml"
    path.write_text("x: [" + "0, " * 300_000 + "0]\n")
    assert not isinstance(read_document(path), Mistake)


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    """Of thousands of unknown keys, the first are described and the others counted in one line."""
    path = tmp_path / "site.yaml"
    path.write_text("agent:\n" + "".join(f"  unknown{n}: 1\n" for n in range(3_000)) + "probes: []\n")
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    *described, rest = caught.value.mistakes
    assert [mistake.line for mistake in described] == list(range(2, 102))
    assert str(rest) == f"{path}:102: from here on there are 2901 more mistakes, which are not listed"
    assert sum(mistake.count for mistake in caught.value.mistakes) == 3_001


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable file is reported with the user who needs permission."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "monitor.config.document.open_regular", refuse
    )  # root, which may run the tests, can read every file
    monkeypatch.setattr("os.geteuid", lambda: 991)
    mistake = read_document(tmp_path / "site.yaml")
    assert isinstance(mistake, Mistake)
    assert mistake.text == "cannot be read: Permission denied; user 991 must be able to read it"


def _settings_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _settings_in(argument)


def _levels(model: type[BaseModel], wrap: Any, at: str) -> Iterator[tuple[str, Any, type[BaseModel]]]:
    """Yield every level of the file: location, function to build a file with an entry there, and model."""
    yield at or "top", wrap, model
    for key, field in model.model_fields.items():
        if key == "probes":
            continue
        named = get_origin(field.annotation) in {dict, Mapping}
        for found in _settings_in(field.annotation):
            # The name is also a key, which must not confuse the lookup.
            name = next(iter(found.model_fields))
            provider = found.model_fields.get("provider")
            given = {"provider": get_args(provider.annotation)[0]} if provider else {}
            yield from _levels(
                found,
                lambda entry, key=key, named=named, name=name, given=given: wrap(
                    {key: {name: given | entry} if named else entry}
                ),
                f"{at}.{key}",
            )


LEVELS = [
    *_levels(Configuration, lambda entry: {"probes": [], **entry}, ""),
    *(
        level
        for kind, probe in KINDS.items()
        for level in _levels(
            probe.settings_model,
            lambda entry, kind=kind: {"probes": [{"kind": kind, "name": "x", **entry}]},
            f"probe {kind}",
        )
    ),
]


@pytest.mark.parametrize(
    ("wrap", "model"), [level[1:] for level in LEVELS], ids=[level[0] for level in LEVELS]
)
def test_mistyped_key_gets_a_suggestion(wrap: Any, model: type[BaseModel], tmp_path: Path) -> None:
    """At every level, a key with a wrong letter or case gets the right suggestion."""
    path = tmp_path / "site.yaml"
    for name, field in model.model_fields.items():
        key = field.alias or name
        for typo in (key + "q", key.upper()):
            path.write_text(yaml.safe_dump(wrap({typo: 1})))
            with pytest.raises(ConfigurationError) as caught:
                load(path)
            told = [mistake for mistake in caught.value.mistakes if mistake.key.endswith(typo)]
            assert [f"Did you mean {key!r}?" in mistake.text for mistake in told] == [True], (typo, told)
