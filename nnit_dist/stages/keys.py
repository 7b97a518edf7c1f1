"""The keys of a configuration, with their defaults and descriptions."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Key:
    """Full path of a key, its default as JSON (empty if the key is required), and its meaning."""

    path: str
    default: str
    meaning: str


def keys_of(model: Any, parent: str = "") -> Iterator[Key]:
    """All keys of a pydantic model or a dataclass, nested ones included, in order."""
    if dataclasses.is_dataclass(model):
        for field in dataclasses.fields(model):
            yield Key(parent + field.name, json.dumps(field.default), field.metadata["description"])
        return
    for name, field in model.model_fields.items():
        if _has_keys(field.annotation):
            yield from keys_of(field.annotation, f"{parent}{name}.")
        else:
            default = "" if field.is_required() else json.dumps(field.default)
            yield Key(parent + name, default, field.description or "")


def _has_keys(annotation: Any) -> bool:
    return dataclasses.is_dataclass(annotation) or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    )
