"""Storage of episodes: Parquet, one row per episode, keyed by (policy, start seed).

A row carries the fingerprint of the weights that it was measured with, so that a policy with
new weights under the same id is measured again. It also names the task, the control mode and the
robot; a directory holds episodes of one of these alone. (Rows of earlier versions do not name
them.) A function has no weights, so its episodes replace those that an earlier run measured.

Results are written every few seconds to a new file, which is renamed into place. A killed
evaluation loses only those seconds, and running it again skips stored episodes. If a write fails
(a full disk), results stay in memory for the next write; only a failure at the end raises.
"""

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import write_atomic
from nnit_dist.core.policy import Policy
from nnit_dist.core.storage import local_file, path_of
from nnit_dist.core.task import TaskInfo
from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.evaluable import Evaluable

SCHEMA = pa.schema(
    [
        ("policy_id", pa.string()),
        ("fingerprint", pa.string()),
        ("seed", pa.int64()),
        ("success_once", pa.bool_()),
        ("success_at_end", pa.bool_()),
        ("episode_return", pa.float64()),
        ("task", pa.string()),
        ("control_mode", pa.string()),
        ("robot", pa.string()),
    ]
)
# Of memory that a row takes; more of it, and more than so many times the file, is a bomb.
_ROW_BYTES, _BOMB_BYTES, _BOMB_FACTOR = 150, 256 << 20, 200
MEASURED, SUBJECT = SCHEMA.names[2:6], SCHEMA.names[6:]


class EpisodeStore:
    """A directory of Parquet files of episodes.

    Args:
        info: the task that episodes are added of; not needed to read.

    Attributes:
        trouble: why the last write failed; empty if it succeeded.
    """

    def __init__(self, path: Path, info: TaskInfo | None = None, flush_s: float = 5.0) -> None:
        self.path, self.flush_s = path_of(path), flush_s
        self.subject = (info.name, info.control_mode, info.robot) if info else ("", "", "")
        self.trouble = ""
        self._functions: dict[str, str] = {}  # fingerprints by id
        self._pending: list[pa.Table] = []
        self._flushed = time.monotonic()

    def load(self, evaluables: Sequence[Evaluable]) -> Iterator[tuple[int, Rollouts]]:
        """Yield stored episodes of these policies and weights, with the policy's index.

        Raises:
            NnitError: a file is damaged, or holds episodes of another task, control mode or robot.
        """
        self._functions = {s.id: s.fingerprint() for s in evaluables if not isinstance(s, Policy)}
        prints = pa.array([f"{s.id}\0{s.fingerprint()}" for s in evaluables])
        for file in self._files():
            table = _read(file)
            self._check_subject(table)
            keys = pc.binary_join_element_wise(table["policy_id"], table["fingerprint"], "\0")
            owners = pc.fill_null(pc.index_in(keys, prints), -1).to_numpy()
            seeds, once, end, returns = (table[name].to_numpy() for name in MEASURED)
            order = np.argsort(owners, kind="stable")
            starts = np.flatnonzero(np.diff(owners[order], prepend=-2))
            for rows in np.split(order, starts[1:]) if len(order) else []:
                if owners[rows[0]] >= 0:
                    yield (
                        int(owners[rows[0]]),
                        Rollouts(tuple(seeds[rows].tolist()), once[rows], end[rows], returns[rows]),
                    )

    def table(self) -> pa.Table:
        """Read every stored episode; NnitError if a file is damaged."""
        return pa.concat_tables([SCHEMA.empty_table(), *map(_read, self._files())])

    def add(self, evaluable: Evaluable, rollouts: Rollouts) -> None:
        """Keep episodes in memory, and write them every few seconds."""
        count = len(rollouts.seeds)
        columns = [
            pa.repeat(evaluable.id, count),
            pa.repeat(evaluable.fingerprint(), count),
            pa.array(rollouts.seeds, pa.int64()),
            pa.array(rollouts.success_once),
            pa.array(rollouts.success_at_end),
            pa.array(rollouts.returns),
            *(pa.repeat(name, count) for name in self.subject),
        ]
        self._pending.append(pa.table(columns, schema=SCHEMA))
        if time.monotonic() - self._flushed > self.flush_s:
            try:
                self.flush()
                self.trouble = ""
            except NnitError as error:
                self.trouble = str(error)
                self._flushed = time.monotonic()

    def flush(self) -> None:
        """Write the episodes that are in memory.

        Raises:
            NnitError: they cannot be written; they are kept for the next try.
        """
        if self._pending:
            self._write(pa.concat_tables(self._pending))
        self._pending, self._flushed = [], time.monotonic()

    def compact(self) -> None:
        """Merge all files into one, sorted, with every episode once.

        Of an episode that was measured with and without its return, the row with it is kept.

        Raises:
            NnitError: episodes in memory cannot be written, or a file is damaged.
        """
        self.flush()
        files, table = self._files(), self.table()
        for policy_id, fingerprint in self._functions.items():
            of_function = pc.equal(table["policy_id"], policy_id)
            stale = pc.and_(of_function, pc.not_equal(table["fingerprint"], fingerprint))
            table = table.filter(pc.invert(stale))
        unmeasured = pc.is_nan(table["episode_return"])
        keys = [(name, "ascending") for name in (*SCHEMA.names[:3], "unmeasured")]
        table = table.append_column("unmeasured", unmeasured).sort_by(keys)
        row = pa.array(np.arange(len(table)))
        groups = table.append_column("row", row).group_by(SCHEMA.names[:3])
        first = groups.aggregate([("row", "min")])["row_min"].to_numpy()
        unique = table.take(np.sort(first)).select(SCHEMA.names)
        if len(files) == 1 and unique.equals(_read(files[0])):
            return
        with contextlib.suppress(NnitError):  # without room for a copy, the files stay
            self._write(unique)
            for file in files:
                file.unlink()

    def _check_subject(self, table: pa.Table) -> None:
        for name, subject in zip(SUBJECT, self.subject, strict=True):
            for other in pc.unique(table[name]).to_pylist():
                if other and subject and other != subject:
                    task, mode, robot = self.subject
                    raise NnitError(
                        f"{self.path} holds episodes of the {name.replace('_', ' ')} {other}, and "
                        f"these are of {task} ({mode}, {robot}). Name another directory with --out."
                    )

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("[!.]*.parquet"))  # skips partial files of killed processes

    def _write(self, table: pa.Table) -> None:
        path = self.path / f"episodes-{uuid.uuid4().hex}.parquet"
        write_atomic(path, lambda partial: pq.write_table(table, partial))


def _read(file: Path) -> pa.Table:
    try:
        with local_file(file) as local:
            rows, size = pq.read_metadata(local).num_rows, local.stat().st_size
            if _ROW_BYTES * rows > max(_BOMB_BYTES, _BOMB_FACTOR * size):
                raise ValueError(f"{size:,} bytes with {rows:,} rows, as no evaluation writes")
            return pq.read_table(local, schema=SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise NnitError(
            f"{file} is damaged ({str(error).splitlines()[0]}). Delete it; its episodes "
            "are then measured again."
        ) from None
