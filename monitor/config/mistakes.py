"""Turns errors in a configuration file into messages that help an administrator to fix them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from monitor.config.document import Document, Location, Mistake, key_of
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


def mistakes_of(error: ValidationError, document: Document, model: type[BaseModel]) -> list[Mistake]:
    """Return the mistakes that pydantic found when it validated ``document`` as ``model``, by line.

    The places that refer to the same unusable variable or file are one mistake. The last mistake counts
    those that are not described.
    """
    places: dict[object, list[tuple[int, Location, ErrorDetails]]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        if detail["type"] == "default_factory_not_called":
            continue  # follows from another mistake of the same entry
        location = _location(detail["loc"], document)
        cause = detail.get("ctx", {}).get("error")
        same = (type(cause), str(cause)) if isinstance(cause, SourceError) else len(places)
        places.setdefault(same, []).append((document.line_of(location), location, detail))
    found = sorted((sorted(each, key=_line) for each in places.values()), key=lambda each: _line(each[0]))
    mistakes = [_mistake(each, model, document) for each in found[:MISTAKES_SHOWN]]
    if others := found[MISTAKES_SHOWN:]:
        text = f"from here on there are {len(others)} more mistakes, which are not listed"
        mistakes.append(Mistake(document.path, _line(others[0][0]), "", text, count=len(others)))
    return mistakes


def _line(place: tuple[int, Location, ErrorDetails]) -> int:
    return place[0]


def _mistake(
    places: Sequence[tuple[int, Location, ErrorDetails]], model: type[BaseModel], document: Document
) -> Mistake:
    (line, location, detail), *others = places
    text = _text(detail, model, document)
    if others:
        text += f". Also used by {', '.join(f'{key_of(other)} (line {at})' for at, other, _ in others)}"
    is_of_secret = isinstance(detail.get("ctx", {}).get("error"), SecretError)
    return Mistake(document.path, line, key_of(location), text, is_of_secret=is_of_secret)


def _location(loc: tuple[int | str, ...], document: Document) -> Location:
    """Drop what is not in the file: a kind or provider, ``[key]``, and the index of a lone item."""
    parts = [part for part in loc if part != "[key]"]
    if len(parts) > 2 and parts[0] in _TAGGED and str(parts[2]) in _TAGGED[parts[0]][1]:
        del parts[2]
    if parts and isinstance(parts[-1], int) and tuple(parts) not in document.lines:
        del parts[-1]
    return tuple(parts)


def _text(detail: ErrorDetails, model: type[BaseModel], document: Document) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(detail["loc"], model)
        case "missing":
            return "this key is required"
        case "value_error":
            return str(context["error"])
        case "repeated_name":
            line = document.line_of(("probes", context["index"], "name"))
            return f"the name {context['name']!r} is taken by the probe in line {line}; choose another"
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
        case "tuple_type":
            return "must be a list; write [ONE, TWO], or one item per line after a dash"
        case _:
            return detail["msg"].replace("Input should be", "must be").replace("String should", "must")


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
