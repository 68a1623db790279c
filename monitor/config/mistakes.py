"""Turns errors in a configuration file into messages that help an administrator to fix them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from monitor.config.document import Location, Mistake, Place, Written
from probes.core.secret import SecretError
from probes.core.setting_types import SourceError
from probes.oauth2.settings import PROVIDERS
from probes.registry import KINDS

MISTAKES_SHOWN = 100
"""Maximum number of mistakes that are described one by one: nobody reads more, and each takes time."""


_TAGGED: Mapping[object, tuple[str, Mapping[str, type[BaseModel]]]] = {
    "probes": ("kind", {name: kind.settings_model for name, kind in KINDS.items()}),
    "oauth2": ("provider", PROVIDERS),
}
"""Tables whose entries have different settings: the key that says which, and the settings by its values."""


@dataclass(slots=True)
class _Found:
    """A mistake that pydantic found, with all places that have it."""

    detail: ErrorDetails
    places: dict[object, Place] = field(default_factory=dict)
    count: int = 0


def mistakes_of(error: ValidationError, written: Written, model: type[BaseModel]) -> list[Mistake]:
    """Return the mistakes that pydantic found when it validated ``written`` as ``model``, by line.

    The places that refer to the same unusable variable or file are one mistake, and so are the entries that
    one ``for_each`` makes. The last mistake counts those that are not described.
    """
    same: dict[object, _Found] = {}
    for detail in error.errors(include_url=False, include_input=False):
        if detail["type"] == "default_factory_not_called":
            continue  # follows from another mistake of the same entry
        place = written.place(_location(detail["loc"], written))
        cause = detail.get("ctx", {}).get("error")
        what = (place.path, place.location, detail["type"], str(detail.get("ctx")))
        key = (type(cause), str(cause)) if isinstance(cause, SourceError) else what
        found = same.setdefault(key, _Found(detail))
        found.count += 1
        found.places.setdefault((place.path, place.location), place)
    ordered = sorted(same.values(), key=lambda each: min(map(_in_file, each.places.values())))
    mistakes = [_mistake(each, model, written) for each in ordered[:MISTAKES_SHOWN]]
    if others := ordered[MISTAKES_SHOWN:]:
        text = f"from here on there are {len(others)} more mistakes, which are not listed"
        first = min(others[0].places.values(), key=_in_file)
        mistakes.append(Mistake(first.path, first.line, "", text, count=len(others)))
    return mistakes


def _in_file(place: Place) -> tuple[Path, int]:
    return place.path, place.line


def _mistake(found: _Found, model: type[BaseModel], written: Written) -> Mistake:
    place, *others = sorted(found.places.values(), key=_in_file)
    text = _text(found.detail, model, written)
    if others:
        text += f". Also used by {', '.join(f'{other.key} ({_line_of(other, place)})' for other in others)}"
    is_of_secret = isinstance(found.detail.get("ctx", {}).get("error"), SecretError)
    key = f"{place.key} ({_items(place, found.count)})" if place.item else place.key
    return Mistake(place.path, place.line, key, text, is_of_secret=is_of_secret)


def _items(place: Place, count: int) -> str:
    return f"{place.item}, and {count - 1} more" if count > 1 else place.item


def _line_of(place: Place, seen_from: Place) -> str:
    """Return the line of a place, with its file if that is another one."""
    return f"line {place.line}" if place.path == seen_from.path else f"{place.path}:{place.line}"


def _location(loc: tuple[int | str, ...], written: Written) -> Location:
    """Drop what is not in the file: a kind or provider, ``[key]``, and the index of a lone item."""
    parts = [part for part in loc if part != "[key]"]
    if len(parts) > 2 and parts[0] in _TAGGED and str(parts[2]) in _TAGGED[parts[0]][1]:
        del parts[2]
    if parts and isinstance(parts[-1], int) and not written.has(tuple(parts)):
        del parts[-1]
    return tuple(parts)


def _text(detail: ErrorDetails, model: type[BaseModel], written: Written) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(detail["loc"], model)
        case "missing":
            return "this key is required"
        case "value_error":
            return str(context["error"])
        case "repeated_name":
            return _repeated_name(context, written.place(_location(detail["loc"], written)), written)
        case "literal_error" | "enum":
            return f"must be one of {context['expected']}"
        case "union_tag_invalid":
            key, models = _TAGGED[detail["loc"][0]]
            tag = context["tag"]
            return f"there is no {key} {tag!r}.{did_you_mean(tag, models)} The {key}s are {', '.join(models)}"
        case "union_tag_not_found":
            key, models = _TAGGED[detail["loc"][0]]
            return f"{key} is required; the {key}s are {', '.join(models)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return _no_mapping(detail["loc"], model)
        case "string_type":
            return "must be text; a number needs quotes"
        case "tuple_type":
            return "must be a list; write [ONE, TWO], or one item per line after a dash"
        case _:
            return detail["msg"].replace("Input should be", "must be").replace("String should", "must")


def _repeated_name(context: Mapping[str, Any], place: Place, written: Written) -> str:
    name, first = context["name"], written.place(("probes", context["index"], "name"))
    if (first.path, first.location) == (place.path, place.location):
        return f"for_each makes the name {name!r} more than once; put its variables into the name"
    return f"the name {name!r} is taken by the probe in {_line_of(first, place)}; choose another"


def _unknown_key(loc: Location, model: type[BaseModel]) -> str:
    known = _keys(_models_at(loc[:-1], model)[0])
    return f"unknown key.{did_you_mean(str(loc[-1]), known)} Known keys: {', '.join(sorted(known))}"


def _no_mapping(loc: Location, model: type[BaseModel]) -> str:
    """Say how to write the settings: with the required keys, or the first key if none is required."""
    models, of_names = _models_at(loc, model)
    known = _keys(models)
    needed = [key for key, is_needed in known.items() if is_needed] or list(known)[:1]
    settings = f"{{{', '.join(f'{key}: …' for key in needed)}}}" if needed else "…"
    if of_names:
        return f"must be a mapping of names, such as {{NAME: {settings}}}"
    hint = f"; known keys: {', '.join(sorted(known))}" if len(models) == 1 else ""
    return f"must be a mapping of settings, such as {settings}{hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question with the most similar name in ``known``; empty if there is none."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _models_at(loc: Location, model: type[BaseModel]) -> tuple[list[type[BaseModel]], bool]:
    """Return the possible models at ``loc``, and whether the keys there are names."""
    candidates: list[type[BaseModel]] = [model]
    is_name = False
    for part in loc:
        if is_name or isinstance(part, int):
            is_name = False
            continue
        tagged = _TAGGED[loc[0]][1] if loc[0] in _TAGGED else {}
        if len(candidates) > 1 and part in tagged:
            candidates = [tagged[part]]
            continue
        fields = [candidate.model_fields[part] for candidate in candidates if part in candidate.model_fields]
        if fields:
            candidates = [found for field in fields for found in _models_in(field.annotation)]
            # The next part is a name chosen by the site, even if it looks like a key.
            is_name = any(get_origin(field.annotation) in {dict, Mapping} for field in fields)
    return candidates, is_name


def _keys(models: Iterable[type[BaseModel]]) -> dict[str, bool]:
    """Return each key of any of the models, and whether all of them require it."""
    fields = [
        {field.alias or key: field.is_required() for key, field in model.model_fields.items()}
        for model in models
    ]
    return {key: all(each.get(key, False) for each in fields) for known in fields for key in known}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
