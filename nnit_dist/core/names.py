"""Names that come from files: ids of policies, tasks, control modes.

They become names of files, and are shown on terminals and pages. So they are checked where they are
read, and again where a path is made of them.
"""

import re

from nnit_dist.core.errors import NnitError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_name(name: object, what: str) -> str:
    """Return the name if it can be one.

    Raises:
        NnitError: it is not 1 to 128 letters, digits, dots, hyphens and underscores, or it begins
            with a dot.
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)) or name.startswith("."):
        raise NnitError(
            f"{what} {str(name)[:40]!r} cannot be a name: it must be 1 to 128 letters, digits, "
            "dots, hyphens and underscores, and not begin with a dot."
        )
    return name


def name_from(text: str) -> str:
    """A name from any text: other characters become underscores."""
    return re.sub(r"^\.|[^A-Za-z0-9._-]", "_", text)[:128] or "_"
