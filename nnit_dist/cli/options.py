"""Options that several commands share."""

from typing import Annotated, Any

import typer

from nnit_dist.core.storage import path_of

# A path, or an address in an object store.
PLACE: dict[str, Any] = {"parser": path_of, "metavar": "PATH"}
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace other files")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
