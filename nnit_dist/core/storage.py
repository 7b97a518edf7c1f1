"""Where artefacts lie: on a disk, of this machine or shared, or in an object store.

A path is a `pathlib.Path`, or for an address such as `s3://bucket/runs` one of universal_pathlib
with the same methods (`path_of`). What pathlib has no word for is here.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, cast

from nnit_dist.core.errors import NnitError

DEFAULT = "NNIT_STORAGE"  # names where runs go that are not told
IN_JOB = "NNIT_JOB"  # is set in a job, whose current directory Ray deletes
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}


def path_of(address: str | Path) -> Path:
    """The path of an address: of a disk, or of an object store (`s3://`, `gs://`).

    Raises:
        NnitError: nothing is installed that reads such addresses.
    """
    text = str(address)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(address)
    from upath import UPath

    try:
        # Listings must not be remembered: other processes write there.
        path = UPath(text, use_listings_cache=False)
        _ = path.fs
    except (ImportError, ValueError) as error:
        remedy = f"pip install 'nnit_dist[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else "s3 or gs"
        raise NnitError(f"{text} is not readable ({error}); try {remedy}.") from None
    return cast(Path, path)


def runs() -> Path:
    """Where runs go: what NNIT_STORAGE names, else `runs` in the current directory.

    Raises:
        NnitError: it names nothing, and this is a job.
    """
    if IN_JOB in os.environ and DEFAULT not in os.environ:
        raise NnitError(
            f"the nodes have no {DEFAULT}, which says where runs go. Set it where Ray is started, "
            "or name a place with --out."
        )
    return path_of(os.environ.get(DEFAULT, "runs"))


def on_disk(path: Path) -> bool:
    """Whether it is a path of this machine's file system."""
    return isinstance(path, PurePath)


@contextlib.contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """The file on this machine's disk: itself, or a copy for as long as the block lasts.

    Raises:
        FileNotFoundError: there is none.
    """
    if on_disk(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def upload(source: Path, path: Path) -> None:
    """Put a file of this disk into an object store, whole or not at all."""
    stored: Any = path
    stored.fs.put_file(str(source), stored.path)


def append(path: Path, text: str) -> None:
    """Add text to a file that one process writes; in an object store it is written anew."""
    if on_disk(path):
        with path.open("a") as file:
            file.write(text)
    else:
        path.write_text((path.read_text() if path.exists() else "") + text)


def remove(directory: Path) -> None:
    """Delete a directory and all in it, as far as that is possible."""
    if on_disk(directory):
        shutil.rmtree(directory, ignore_errors=True)
        return
    stored: Any = directory
    with contextlib.suppress(OSError):
        stored.rmdir(recursive=True)


def beside(run: Path, name: str) -> Path:
    """A place on this machine's disk for what need not outlive it: logs and the like.

    In the run's directory, or in the machine's temporary one if the run lies in an object store.
    """
    if on_disk(run):
        return run / name
    return Path(tempfile.gettempdir()) / "nnit" / str(run).replace("://", "-").strip("/") / name
