"""The documentation is correct: links work, names exist, commands parse, and references are up to date."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
import yaml
from pydantic import TypeAdapter

from monitor.commands import main
from monitor.config.load import load
from monitor.config.models import AgentSettings, Configuration
from probes.core.finding import Check
from probes.core.reasons import Reason
from probes.core.remedies import GENERAL
from probes.core.settings import MailboxSettings, ServerSettings
from probes.registry import KINDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUNBOOKS = ROOT / "alerts" / "runbooks"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *RUNBOOKS.glob("*.md"), *ROOT.glob("dashboards/*.md")]
)

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_METRIC = re.compile(r"\bmailsonde_[a-z_]+[a-z]\b(?![*{]?\*)")
_HISTOGRAM_SERIES = re.compile(r"_(bucket|count|sum)$")
_TYPED_IN_A_BLOCK = re.compile(r"^ {4,}(mailsonde .+)$", re.MULTILINE)
_TYPED_INLINE = re.compile(r"`(mailsonde [^`\n]+)`")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a rendered page: its headings in lower case, with dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link leads to an existing file and heading."""
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{relative(page)}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{relative(page)}: {link} leads out of the project"
        if anchor:
            assert anchor in anchors(target), f"{relative(page)}: {name} has no heading for #{anchor}"


def test_generated_pages_are_what_the_code_says() -> None:
    """The generated reference is up to date."""
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_configurations_with_oauth2_are_valid(tmp_path: Path) -> None:
    """Each configuration of the guide to OAuth2 is valid as it stands."""
    page = (DOCS / "oauth2.md").read_text()
    blocks = re.findall(r"^    oauth2:\n(?:    .+\n)+", page, re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        path = tmp_path / "mailsonde.yaml"
        path.write_text(textwrap.dedent(block))
        load(path, secrets=False)


def settings_definitions() -> dict[str, Any]:
    """Return the schemas of all settings, apart from `defaults`, which has the same ones again."""
    definitions = Configuration.model_json_schema(by_alias=True)["$defs"]
    return {name: each for name, each in definitions.items() if "Defaults" not in name}


def test_every_setting_is_documented() -> None:
    """Each setting is in the reference and, in its place, in the example."""
    reference = (DOCS / "reference" / "settings.md").read_text()
    example = (ROOT / "config" / "example.yaml").read_text()
    for definition in settings_definitions().values():
        for key in definition["properties"]:
            assert f"| `{key}` |" in reference
            assert re.search(rf"\b{key}:", example), f"config/example.yaml does not show {key}"


def test_every_default_is_documented() -> None:
    """Each default in the reference applies; only prose and "none" stand for variable ones."""
    section, shown = "", {}
    for line in (DOCS / "reference" / "settings.md").read_text().splitlines():
        if line.startswith("## "):
            section = re.sub(r".*`(\w+)`$", r"\1", line)
        elif row := re.match(r"\| `(\w+)` \| ([^|]+) \| [^|]*\|$", line):
            shown[section, row[1]] = row[2]
    assert len(shown) == sum(len(each["properties"]) for each in settings_definitions().values())
    models = {"agent": AgentSettings, "servers": ServerSettings, "mailboxes": MailboxSettings}
    for section, model in (models | {name: kind.settings_model for name, kind in KINDS.items()}).items():
        for name, field in model.model_fields.items():
            text = shown[section, field.alias or name]
            assert text.startswith("required") == field.is_required(), (section, name)
            if text.startswith("`"):
                kind = TypeAdapter(Annotated[(field.annotation, None, *field.metadata)])
                assert kind.validate_python(yaml.safe_load(text.strip("`"))) == field.default, (section, name)


def test_every_reason_is_documented() -> None:
    """Each possible reason of a run is explained, with its outcome and remedy."""
    reference = (DOCS / "reference" / "reasons.md").read_text()
    for reason in Reason:
        remedy = GENERAL.get(reason, "")
        assert f"| `{reason}` | {reason.outcome} | {reason.meaning} | {remedy} |" in reference


def test_every_check_is_documented() -> None:
    """Each check is explained, with its severities, source and remedy."""
    reference = (DOCS / "reference" / "checks.md").read_text()
    for check in Check:
        severities = ", ".join(check.severities)
        told = f"| `{check}` | {severities} | {check.meaning} | {check.source} | {check.remedy} |"
        assert told in reference


def metrics() -> set[str]:
    """Return the names of the agent's metrics and of those that `config/deploy/windows` adds.

    Histograms are without suffixes, counters with their own.
    """
    reference = (DOCS / "reference" / "metrics.md").read_text() + (DOCS / "windows.md").read_text()
    return set(re.findall(r"^\| `(mailsonde_\w+)` \|", reference, re.MULTILINE))


def test_every_metric_is_documented() -> None:
    """Each metric name in the code is in the reference, even if it is rarely exported."""
    trees = [
        ast.parse((ROOT / "monitor" / name).read_text())
        for name in ("collector.py", "route_metrics.py", "self_watch.py")
    ]
    constants = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    named = {text for text in constants if isinstance(text, str) and re.fullmatch(r"mailsonde_\w+", text)}
    assert len(named) > 15
    known = metrics()
    for name in named:
        assert known & {name, f"{name}_total", f"{name}_info"}, f"metrics.md lacks {name}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_no_page_names_a_metric_that_does_not_exist(page: Path) -> None:
    """Every metric name on a page exists."""
    for name in _METRIC.findall(page.read_text()):
        assert _HISTOGRAM_SERIES.sub("", name) in metrics() or name in metrics(), name


def test_every_alert_is_documented() -> None:
    """Each alert has a section and a runbook, and each threshold is shown with an alert that uses it."""
    templates = "".join(path.read_text() for path in (ROOT / "alerts").glob("*.j2"))
    names = set(re.findall(r"\bMailsonde[A-Z]\w+", templates))
    page = (DOCS / "reference" / "alerts.md").read_text()
    assert set(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == names
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == names
    thresholds = yaml.safe_load((ROOT / "alerts" / "thresholds.yaml").read_text())
    for key, value in thresholds.items():
        if isinstance(value, int | float) or re.fullmatch(r"[\d.]+[a-z]+", str(value)):
            assert f"- `{key}: {value}`" in page


def parse(line: str) -> None:
    """Parse a command line as the command would, without running it; raises click.UsageError."""
    words = re.sub(r"\s[#>|] .*$", "", line).replace("\\|", "|").replace("[", "").replace("]", "").split()
    arguments = [word.partition("|")[0] for word in words[1:]]  # the first of the alternatives
    with click.Context(main) as context:
        _, command, rest = main.resolve_command(context, arguments)
        assert command is not None
        command.make_context(command.name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_command_lines_parse(page: Path) -> None:
    """Each command line is valid as shown; in a sentence, required parts may be missing."""
    text = page.read_text()
    for line in _TYPED_IN_A_BLOCK.findall(text):
        if "`" not in line and not line.endswith("."):  # not a sentence that continues in a list
            parse(line)
    for line in _TYPED_INLINE.findall(text):
        try:
            parse(line)
        except click.MissingParameter:
            pass
        except click.UsageError as error:
            pytest.fail(f"{relative(page)}: {line}: {error.format_message()}")
