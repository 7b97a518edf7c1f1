"""Options that several commands share."""

from typing import Annotated, Any

import typer

from nnit_dist.core.storage import path_of
from nnit_dist.core.task import MOST_SEED

# A path, or an address in an object store.
PLACE: dict[str, Any] = {"parser": path_of, "metavar": "PATH"}
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace other files")]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED)]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
