"""Strict reading of YAML: bounded in size, without aliases and repeated keys."""

from pathlib import Path
from typing import Any

import yaml

from nnit_dist.core.errors import NnitError

MOST_BYTES = 1 << 20


class _StrictLoader(yaml.SafeLoader):
    """Reads YAML without aliases, which can grow without bounds, and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"the key {repeated[0]!r} is there twice; keep one of them.")
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
        return yaml.load(path.read_text("utf-8"), _StrictLoader)
    except FileNotFoundError:
        raise NnitError(f"there is no configuration {path}.") from None
    except UnicodeDecodeError:
        raise NnitError(f"{path} is not text in UTF-8; save it in this encoding.") from None
    except OSError as error:
        raise NnitError(f"cannot read {path}: {error.strerror or error}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise NnitError(f"{path} is not valid YAML: {error}") from None
