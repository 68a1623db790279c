"""The table ``hybrid``: the ways of mail between Exchange on premises and Exchange Online, as round trips.

Each way is an ordinary probe. Its labels say to rules which other probe sends the opposite way, and which
connector both sides need for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model
from pydantic_core import InitErrorDetails

from monitor.config.document import Location
from probes.core.setting_types import EmailAddress, LabelName, Line, ServerName
from probes.core.settings import MailboxName, Reference, Settings
from probes.registry import KINDS

LABELS = ("hybrid", "connector", "opposite")
"""The labels of these probes; `alerts/delivery.yaml.j2` and `alerts/alertmanager.yaml` read them."""

_Side = Literal["on_premises", "cloud"]
_Target = Annotated[ServerName, Reference("servers", frozenset({"smtp", "graph"}))]


class HybridSide(Settings):
    """One half of a hybrid organization."""

    mailbox: MailboxName = Field(description="A mailbox on this side, an entry of `mailboxes`.")
    server: _Target = Field(
        description="The server of this side that takes its messages, an entry of `servers`."
    )


class HybridOutside(Settings):
    """Mail from outside the organization, which is sent to the hosts in the MX records."""

    sender: EmailAddress = Field(
        alias="from", description="A sender whose domain is not the organization's own."
    )
    mx_at: _Side = Field(default="cloud", description="The side that the MX records point to.")


def _free_of_ours(labels: dict[str, str]) -> dict[str, str]:
    if taken := [label for label in LABELS if label in labels]:
        raise ValueError(f"hybrid sets the label {taken[0]!r} itself; choose another name")
    return labels


class _HybridWays(Settings):
    """A hybrid organization: what each way needs, apart from settings that all ways share."""

    on_premises: HybridSide = Field(description="Mailbox and server on premises.")
    cloud: HybridSide = Field(description="Mailbox and server in Exchange Online.")
    outside: HybridOutside | None = Field(
        default=None, description="Sender of mail from outside. Default: no such mail is sent."
    )
    connector_to_cloud: Line = Field(
        default="Outbound to Office 365",
        description="The connector that sends mail to the cloud. Alerts name it.",
    )
    connector_to_on_premises: Line = Field(
        default="Outbound to on-premises",
        description="The connector that sends mail back on premises. Alerts name it.",
    )


SHARED = (
    *("interval", "deadline", "scheduled", "enabled", "severity", "description", "labels", "alerts", "slo"),
    *("attachment", "retry"),
)
"""Settings of a ``roundtrip`` probe that are written once for all ways."""

_FIELDS = {key: KINDS["roundtrip"].settings_model.model_fields[key] for key in SHARED}
_TYPES: dict[str, Any] = {key: (field.annotation, field) for key, field in _FIELDS.items()}
_TYPES["labels"] = (Annotated[dict[LabelName, Line], AfterValidator(_free_of_ours)], _FIELDS["labels"])

if TYPE_CHECKING:
    HybridSettings = _HybridWays
else:
    HybridSettings = create_model(
        "HybridSettings", __base__=_HybridWays, __module__=__name__, __doc__=_HybridWays.__doc__, **_TYPES
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """A way of mail; ``into`` is where it ends, ``via`` the side whose server or MX hosts take it."""

    suffix: str
    into: _Side
    via: _Side
    opposite: str | None = None
    is_from_outside: bool = False

    def origins(self) -> Mapping[str, Location]:
        """Return where the settings of its probe that are no setting of the entry come from."""
        sender = ("outside", "from") if self.is_from_outside else (self.via, "mailbox")
        send_via = ("outside",) if self.is_from_outside else (self.via, "server")
        return MappingProxyType(
            {"name": (), "from": sender, "send_via": send_via, "to": (self.into, "mailbox")}
        )

    def probe(self, name: str, entry: Mapping[str, Any], senders: Mapping[str, object]) -> dict[str, Any]:
        """Return the raw settings of its probe for the entry ``name``."""
        labels = {"hybrid": name}
        if self.into != self.via:
            key = f"connector_to_{self.into}"
            labels["connector"] = entry.get(key, _HybridWays.model_fields[key].default)
        if self.opposite is not None:
            labels["opposite"] = f"{name}-{self.opposite}"
        own = entry.get("labels", {})
        return {
            **{key: entry[key] for key in SHARED if key in entry},
            "name": f"{name}-{self.suffix}",
            "kind": "roundtrip",
            "from": entry["outside"].get("from") if self.is_from_outside else senders[self.via],
            "send_via": "mx" if self.is_from_outside else entry[self.via].get("server"),
            "to": entry[self.into].get("mailbox"),
            "labels": {**own, **labels} if isinstance(own, Mapping) else own,
        }


_INSIDE = (
    _Way("inside", "on_premises", "on_premises"),
    _Way("to-cloud", "cloud", "on_premises", opposite="to-on-premises"),
    _Way("to-on-premises", "on_premises", "cloud", opposite="to-cloud"),
)


@dataclass(frozen=True, slots=True)
class HybridProbe:
    """A probe that an entry of ``hybrid`` amounts to."""

    entry: str
    way: _Way
    settings: dict[str, Any]

    def location(self, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return where in the file the setting at ``loc`` within the probe comes from."""
        if loc[:2] == ("labels", "connector"):
            loc = (f"connector_to_{self.way.into}",)
        key, *rest = loc or ("name",)
        origins = self.way.origins()
        return ("hybrid", self.entry, *(origins[str(key)] if key in origins else (key, *rest)))


def hybrid_probes(data: Mapping[Any, Any]) -> Iterator[HybridProbe]:
    """Yield the probes of all entries of ``hybrid`` in raw ``data``.

    An entry whose sides cannot be read has none: its model, or a check of its references, refuses it.
    """
    mailboxes = _mapping(data.get("mailboxes"))
    for name, entry in _mapping(data.get("hybrid")).items():
        senders = {}
        for side in ("on_premises", "cloud"):
            mailbox = _mapping(_mapping(entry).get(side)).get("mailbox")
            senders[side] = _mapping(mailboxes.get(str(mailbox))).get("address")
        if not isinstance(name, str) or None in senders.values():
            continue
        for way in (*_INSIDE, *_from_outside(entry.get("outside"))):
            yield HybridProbe(name, way, way.probe(name, entry, senders))


def _from_outside(outside: object) -> Iterator[_Way]:
    if isinstance(outside, Mapping) and "from" in outside:
        at: _Side = "on_premises" if outside.get("mx_at") == "on_premises" else "cloud"
        yield _Way("outside-into-on-premises", "on_premises", at, is_from_outside=True)
        yield _Way("outside-into-cloud", "cloud", at, is_from_outside=True)


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def told_of_entries(
    errors: Iterable[InitErrorDetails], written: int, probes: list[HybridProbe]
) -> Iterator[InitErrorDetails]:
    """Yield ``errors``, with those of the ``probes`` that follow the ``written`` ones where they come from.

    A mistake in a setting that ways share is yielded once.
    """
    told = set()
    ours: dict[int | str, HybridProbe] = {written + place: probe for place, probe in enumerate(probes)}
    for error in errors:
        loc = error.get("loc", ())
        if loc[:1] == ("probes",) and len(loc) > 1 and (probe := ours.get(loc[1])) is not None:
            rest = loc[3:] if loc[2:3] == ("roundtrip",) else loc[2:]
            error = {**error, "loc": probe.location(rest)}
        same = (error.get("loc"), str(error["type"]), str(error.get("ctx")))
        if same not in told:
            told.add(same)
            yield error
