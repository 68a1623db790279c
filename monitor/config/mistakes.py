"""Mistakes of a configuration file, said so that an administrator can mend them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from monitor.config.document import Document, Location, Mistake, key_of
from probes.registry import KINDS


def mistakes_of(error: ValidationError, document: Document, model: type[BaseModel]) -> Iterator[Mistake]:
    """Yield a mistake for each error that pydantic found when it read ``document`` as ``model``."""
    for detail in error.errors(include_url=False, include_input=False):
        if detail["type"] == "default_factory_not_called":
            continue  # follows from another mistake of the same entry
        location = _location(detail["loc"])
        yield Mistake(document.path, document.line_of(location), key_of(location), _text(detail, model))


def _location(loc: tuple[int | str, ...]) -> Location:
    """Drop what pydantic adds to a path: the kind after a probe's index, and ``[key]``."""
    parts = [part for part in loc if part != "[key]"]
    if len(parts) > 2 and parts[0] == "probes" and parts[2] in KINDS:
        del parts[2]
    return tuple(parts)


def _text(detail: ErrorDetails, model: type[BaseModel]) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(detail["loc"], model)
        case "missing":
            return "this key is required"
        case "value_error":
            return str(context["error"])
        case "literal_error" | "enum":
            return f"must be one of {context['expected']}"
        case "union_tag_invalid":
            known = ", ".join(KINDS)
            tag = context["tag"]
            return f"there is no kind {tag!r}.{_did_you_mean(tag, KINDS)} The kinds are {known}"
        case "union_tag_not_found":
            return f"kind is required; the kinds are {', '.join(KINDS)}"
        case _:
            return detail["msg"].replace("Input should be", "must be").replace("String should", "must")


def _unknown_key(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = _known_keys(loc[:-1], model)
    return f"unknown key.{_did_you_mean(str(loc[-1]), known)} Known here: {', '.join(known)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _known_keys(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys that the model at ``loc`` knows, following the models' fields down."""
    candidates: list[type[BaseModel]] = [model]
    is_name = False
    for part in loc:
        if is_name or isinstance(part, int):
            is_name = False
            continue
        if part in KINDS and len(candidates) > 1:
            candidates = [KINDS[part].settings_model]
            continue
        fields = [candidate.model_fields[part] for candidate in candidates if part in candidate.model_fields]
        if fields:
            candidates = [found for field in fields for found in _models_in(field.annotation)]
            # What follows is a name that the site chose, even where it reads like a key.
            is_name = any(get_origin(field.annotation) in {dict, Mapping} for field in fields)
    return sorted(
        {field.alias or key for candidate in candidates for key, field in candidate.model_fields.items()}
    )


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
