"""One bad file for each rule of the configuration, with the complete error message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.config.load import ConfigurationError, load
from probes.registry import KINDS

BAD = Path(__file__).parent / "bad"


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_bad_file_is_refused_with_its_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule refuses its bad file with file, line, key and remedy."""
    monkeypatch.setenv("TEST_SECRET", "s3cret-of-the-test")
    monkeypatch.setenv("TEST_SECRET_TWO_LINES", "two\nlines")
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    told = str(caught.value).replace(f"{BAD}{os.sep}", "")
    expected = path.with_suffix(".expected").read_text().replace("{kinds}", ", ".join(KINDS))
    sections = sorted({*KINDS, "mailboxes", "maintenance", "probes", "servers"})
    expected = expected.replace("{sections of defaults}", ", ".join(sections))
    assert told + "\n" == expected
    assert "hunter2" not in told
    assert "s3cret" not in told
