"""A file of the zoo: Parquet with one policy a row.

It is read in bounded memory, unless its pages hold more than its own footer says of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import on_disk

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("control_mode", pa.string()),
        ("obs_dim", pa.int32()),
        ("act_dim", pa.int32()),
        ("hidden", pa.list_(pa.int32())),
        ("activation", pa.string()),
        ("source", pa.string()),
        ("trial", pa.string()),
        ("seed", pa.int64()),
        ("env_steps", pa.int64()),
        ("success_once", pa.float64()),
        ("success_at_end", pa.float64()),
        ("return", pa.float64()),
        ("weights", pa.list_(pa.float32())),
    ]
)
MOST_WEIGHTS = 32 << 20  # in a row group
MOST_ROWS = 100_000  # in a row group
MOST_TEXT = 256  # bytes
_ROW_BYTES, _WIDTH_BYTES = 1000, 32  # of memory that a row, and a hidden width, take in Python
_BOMB_BYTES, _BOMB_FACTOR = 64 << 20, 200  # more, and more than so many times its size, is a bomb
_TEXTS = [field.name for field in SCHEMA if field.type == pa.string()]
NO_WEIGHTS = [name for name in SCHEMA.names if name != "weights"]
_RENAMED = {"parent": "trial"}  # columns of older files


ZooRow = TypedDict(  # the columns of SCHEMA; `return` is no name for a field of a class
    "ZooRow",
    {
        "id": str,
        "task": str,
        "control_mode": str,
        "obs_dim": int,
        "act_dim": int,
        "hidden": list[int],
        "activation": str,
        "source": str,
        "trial": str,
        "seed": int,
        "env_steps": int,
        "success_once": float,
        "success_at_end": float,
        "return": float,
        "weights": NotRequired[Sequence[float] | np.ndarray],
    },
)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Read from a file within this block; NnitError if it is damaged or no zoo file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise NnitError(
            f"{path} is damaged or not a zoo file ({reason}). The other files are intact; move "
            "this one away and run `nnit population` again to refill it."
        ) from None


@contextmanager
def open_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file for `read_group`; NnitError if it is damaged, no zoo file, or too large."""
    with ExitStack() as stack:
        with readable(path):
            source = path if on_disk(path) else stack.enter_context(path.open("rb"))
            metadata = pq.read_metadata(source)
            _check_size(metadata, path.stat().st_size)
            # Texts stay encoded until their lengths are known.
            encoded = [name for name in metadata.schema.names if name in (*_TEXTS, *_RENAMED)]
            file = stack.enter_context(
                pq.ParquetFile(source, metadata=metadata, read_dictionary=encoded)
            )
        yield file


def _check_size(metadata: pq.FileMetaData, file_bytes: int) -> None:
    """Raise ValueError if a file lacks columns, or would take too much memory when it is read.

    A column that repeats one value takes a few bytes in a file and any number in memory.
    """
    schema = metadata.schema.to_arrow_schema()
    names = _current_names(schema.names)
    if missing := set(SCHEMA.names) - set(names):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    for field in SCHEMA:
        if names.count(field.name) > 1:
            raise ValueError(f"it has more than one {field.name}")
        found = schema.field(names.index(field.name)).type
        if not _fits(found, field.type):
            raise ValueError(f"its {field.name} is {found}, not {field.type}")
    total = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        counts = dict.fromkeys(SCHEMA.names, 0)
        for column in map(group.column, range(group.num_columns)):
            name = _RENAMED.get(column.path_in_schema, column.path_in_schema).split(".")[0]
            if name in counts:
                counts[name] += column.num_values
            if name in _TEXTS and column.total_uncompressed_size > _BOMB_BYTES:
                raise ValueError(f"it has more than {_BOMB_BYTES >> 20} MB of {name} in a group")
        weights = counts["weights"]
        if weights > MOST_WEIGHTS or group.num_rows > MOST_ROWS or min(counts.values()) < 0:
            raise ValueError(
                f"it has {group.num_rows:,} rows and {weights:,} weights in a row group; at most "
                f"{MOST_ROWS:,} and {MOST_WEIGHTS:,} are read"
            )
        total += _ROW_BYTES * group.num_rows + _WIDTH_BYTES * counts["hidden"] + 4 * weights
    if total > max(_BOMB_BYTES, _BOMB_FACTOR * file_bytes):
        raise ValueError(
            f"its {file_bytes:,} bytes would take {total >> 20:,} MB of memory, as no zoo does"
        )


def read_group(file: pq.ParquetFile, group: int, *, weights: bool = True) -> pa.Table:
    """A row group with the current names of columns, with or without weights.

    Raises:
        ValueError: a text is too long, or is not UTF-8.
    """
    wanted = SCHEMA.names if weights else NO_WEIGHTS
    names = [name for name in file.schema_arrow.names if _RENAMED.get(name, name) in wanted]
    table = file.read_row_group(group, names)
    table = table.rename_columns(_current_names(table.column_names))
    for name in _TEXTS:
        for chunk in table[name].chunks:
            texts = chunk.dictionary if isinstance(chunk, pa.DictionaryArray) else chunk
            longest = pc.max(pc.binary_length(texts)).as_py() or 0
            if longest > MOST_TEXT:
                raise ValueError(f"it has a {name} of {longest:,} bytes")
    table = table.select(wanted).cast(pa.schema([SCHEMA.field(name) for name in wanted]))
    table.validate(full=True)
    return table


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of this type can be read as the wanted one."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and _fits(found.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return pa.types.is_string(found)
    return pa.types.is_integer(found) or pa.types.is_floating(found)


def rows_of(table: pa.Table) -> Iterator[ZooRow]:
    """The rows of a table; their weights stay arrays."""
    for batch in table.to_batches(max_chunksize=1024):
        if "weights" not in batch.schema.names:
            yield from batch.to_pylist()
            continue
        weights = batch.column("weights")
        for number, row in enumerate(batch.drop_columns(["weights"]).to_pylist()):
            values = weights[number].values
            row["weights"] = None if values is None else values.to_numpy(zero_copy_only=False)
            yield row


def _current_names(names: list[str]) -> list[str]:
    return [_RENAMED.get(name, name) for name in names]
