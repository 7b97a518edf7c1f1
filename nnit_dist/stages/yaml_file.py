"""Strict reading of YAML: bounded in size, without aliases and repeated keys."""

from pathlib import Path
from typing import Any

import yaml

from nnit_dist.core.errors import NnitError

MOST_BYTES = 1 << 18
# (PyYAML raises the others on dates, numbers and keys that it cannot make.)
_UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, ArithmeticError)


class _StrictLoader(yaml.SafeLoader):
    """Reads YAML without aliases, which can grow without bounds, and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set[str]()
        for key in (str(key.value) for key, _ in node.value):
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} is there twice; keep one of them.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        NnitError: the file is missing, too large, not UTF-8 or not YAML, or has aliases or a key
            twice.
    """
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise NnitError(f"{path} is too large for a configuration.")
        return parse_yaml(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise NnitError(f"there is no configuration {path}.") from None
    except UnicodeDecodeError:
        raise NnitError(f"{path} is not text in UTF-8; save it in this encoding.") from None
    except OSError as error:
        raise NnitError(f"cannot read {path}: {error.strerror or error}.") from None


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; NnitError, which begins with `name`, if it is none."""
    try:
        return yaml.load(text, _StrictLoader)
    except _UNREADABLE as error:
        raise NnitError(f"{name} is not valid YAML: {error}") from None
