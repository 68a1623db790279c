"""Judges what Exchange Server says of itself over HTTP: health pages, builds, the Auth certificate."""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from probes.core.faults import ProbeFault, legible
from probes.core.finding import Check, Finding, Severity
from probes.core.reasons import Reason
from probes.core.setting_types import is_host_name
from probes.protocols.tls import CertificateExpiry, expiry_of

MOST_KEYS = 20
"""Maximum number of keys to read from the metadata document."""

_HEALTHY = re.compile(rb"\s*200 OK<br ?/?>\s*([A-Za-z0-9.-]{1,253})\s*", re.IGNORECASE)
_BUILD = re.compile(r"([0-9]{1,5})\.([0-9]{1,5})\.([0-9]{1,5})\.([0-9]{1,5})")
_DATA = Path(__file__).with_name("exchange_builds.toml")

Build = tuple[int, ...]
"""A build's four numbers, such as 15.2.1748.36."""


def healthy_server(body: bytes) -> str | None:
    """Return the name in a health page, in lower case; ``None`` if the page is not the healthy one."""
    page = _HEALTHY.fullmatch(body)
    name = page[1].decode().lower() if page else ""
    return name if is_host_name(name) else None


def build_of(text: str) -> Build | None:
    """Return a build, such as that of ``X-OWA-Version``; ``None`` if the text is none."""
    numbers = _BUILD.fullmatch(text)
    return tuple(map(int, numbers.groups())) if numbers else None


def build_text(build: Build) -> str:
    """Return a build as Microsoft writes it."""
    return ".".join(map(str, build))


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Exchange Server: its first build, its newest known one, and the end of its support."""

    name: str
    first: Build
    newest: Build
    supported_until: date | None


@dataclass(frozen=True, slots=True)
class Builds:
    """The known releases, the newest first, as of a date."""

    as_of: date
    releases: tuple[Release, ...]

    def release_of(self, build: Build) -> Release | None:
        """Return the release that a build belongs to; ``None`` if it is not known."""
        found = (each for each in self.releases if each.first[:3] == build[:3])
        return next(found, None)


@cache
def known_builds() -> Builds:
    """Return the content of the data file; raises ValueError or KeyError if it is broken."""
    written = tomllib.loads(_DATA.read_text())
    releases = []
    for entry in written["releases"]:
        first, newest = build_of(entry["first"]), build_of(entry["newest"])
        if first is None or newest is None:
            raise ValueError(f"{entry['name']}: first and newest must be builds")
        releases.append(Release(entry["name"], first, newest, entry.get("supported_until")))
    return Builds(written["as_of"], tuple(releases))


def build_standing(text: str) -> str:
    """Return a build with its release, if it is known, and the newest known build of that release."""
    build, known = build_of(text), known_builds()
    release = known.release_of(build) if build is not None else None
    if build is None or release is None:
        return text
    newest = f"{build_text(release.newest)} is known as of {known.as_of}"
    return f"{text}, {release.name}{f'; {newest}' if build < release.newest else ''}"


def judge_build(server: str, build: Build, minimum: Build | None, today: date) -> list[Finding]:
    """Return the findings about a server's build, by the site's minimum and the known builds."""
    findings = []
    if minimum is not None and build < minimum:
        findings.append(
            Finding(
                Check.EXCHANGE_BUILD_BELOW_MINIMUM,
                Severity.WARNING,
                server,
                build_text(build),
                f"{build_text(minimum)} or newer",
            )
        )
    builds = known_builds()
    release = builds.release_of(build)
    if release is None:
        return findings
    has_ended = release.supported_until is not None and today > release.supported_until
    if build < release.newest or has_ended:
        ended = f", out of support since {release.supported_until}" if has_ended else ""
        findings.append(
            Finding(
                Check.EXCHANGE_BUILD_OUTDATED,
                Severity.INFO,
                server,
                f"{release.name}, {build_text(build)}{ended}",
                f"{build_text(release.newest)}, the newest known build as of {builds.as_of}",
            )
        )
    return findings


def auth_certificate(document: Mapping[str, object]) -> CertificateExpiry:
    """Return the expiry of the Auth certificate in an organization's metadata document.

    While it is replaced, the document has the old and the new one; the one that ends last counts. Raises
    `ProbeFault` if there is none, or if one is no certificate.
    """
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise ProbeFault(Reason.PROTOCOL_ERROR, "the metadata document has no list of keys")
    found = [_expiry(position, key) for position, key in enumerate(keys[:MOST_KEYS])]
    ends = [expiry for expiry in found if expiry is not None]
    if not ends:
        raise ProbeFault(Reason.PROTOCOL_ERROR, "the metadata document has no certificate")
    return max(ends)


def _expiry(position: int, key: object) -> CertificateExpiry | None:
    value = key.get("keyvalue") if isinstance(key, dict) else None
    if not isinstance(value, dict) or str(value.get("type")).lower() != "x509certificate":
        return None
    text = value.get("value")
    try:
        expiry = expiry_of(base64.b64decode(text, validate=True)) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        expiry = None
    if expiry is None:
        shown = legible(str(text), 40)
        raise ProbeFault(Reason.PROTOCOL_ERROR, f"keys[{position}] is no certificate: {shown}")
    return expiry
