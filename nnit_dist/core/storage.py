"""Storage of artifacts: a local or shared disk, or an object store.

`path_of` turns an address into a path: a `pathlib.Path`, or for an address such as
`s3://bucket/runs` a path of universal_pathlib with the same methods. The other functions here do
what pathlib cannot.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, cast

from nnit_dist.core.errors import NnitError

DEFAULT = "NNIT_STORAGE"  # the environment variable with the default directory of runs
IN_JOB = "NNIT_JOB"  # set in a job of Ray, whose current directory Ray deletes
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}


def path_of(address: str | Path) -> Path:
    """The path of an address on a disk or in an object store (`s3://`, `gs://`).

    Raises:
        NnitError: no installed library reads such addresses.
    """
    text = str(address)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(address)
    from upath import UPath

    if scheme in _EXTRAS and not text.partition("://")[2].partition("/")[0]:
        raise NnitError(f"{text} names no bucket; write {scheme}://BUCKET/PATH.")
    try:
        # Listings are not cached, since other processes write there too.
        path = UPath(text, use_listings_cache=False)
        _ = path.fs
    except (ImportError, ValueError) as error:
        remedy = f"pip install 'nnit_dist[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else "s3 or gs"
        raise NnitError(f"{text} is not readable ({error}); try {remedy}.") from None
    return cast(Path, path)


def runs() -> Path:
    """The directory of runs: NNIT_STORAGE, else `runs` in the current directory.

    Raises:
        NnitError: this is a job of Ray, and NNIT_STORAGE is not set.
    """
    if IN_JOB in os.environ and DEFAULT not in os.environ:
        raise NnitError(
            f"the nodes have no {DEFAULT}, the directory of runs. Set it where Ray is started, or "
            "name a directory with --out."
        )
    return path_of(os.environ.get(DEFAULT, "runs"))


def on_disk(path: Path) -> bool:
    """Whether `path` is on this machine's file system, not in an object store."""
    return isinstance(path, PurePath)


@contextlib.contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """The file on this machine's disk: `path` itself, or a copy that lasts as long as the block.

    Raises:
        FileNotFoundError: the file is in an object store and does not exist.
    """
    if on_disk(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def upload(source: Path, path: Path) -> None:
    """Copy a file from this disk into an object store, completely or not at all."""
    stored: Any = path
    stored.fs.put_file(str(source), stored.path)


def append(path: Path, text: str) -> None:
    """Add text to a file that no other process writes; an object store gets the file anew."""
    if on_disk(path):
        with path.open("a") as file:
            file.write(text)
    else:
        path.write_text((path.read_text() if path.exists() else "") + text)


def remove(directory: Path) -> None:
    """Delete a directory with its contents; what cannot be deleted stays."""
    if on_disk(directory):
        shutil.rmtree(directory, ignore_errors=True)
        return
    stored: Any = directory
    with contextlib.suppress(OSError):
        stored.rmdir(recursive=True)


def beside(run: Path, name: str) -> Path:
    """A path on this machine's disk for files such as logs, which a run does not need later.

    It is in the run's directory, or in `private_directory` if the run is in an object store.
    """
    if on_disk(run):
        return run / name
    return private_directory() / str(run).replace("://", "-").strip("/") / name


def private_directory() -> Path:
    """A temporary directory of this account alone (mode 0700); it is made if it is missing.

    Its path is short, as sockets of Ray in it may have at most 107 characters.

    Raises:
        NnitError: something else, or another account's directory, has its name.
    """
    base = tempfile.gettempdir()
    path = Path(base if len(base) < 32 else "/tmp") / f"nnit-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise NnitError(
            f"{path} is not a directory of this account, so it may be another account's trap. "
            "Remove it, or name another temporary directory with TMPDIR."
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path
