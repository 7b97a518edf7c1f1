"""Where episodes are kept: Parquet, one row an episode, keyed by (policy, start seed).

A row carries the fingerprint of the weights that it was measured with, so that a
policy that was written anew under the same id is measured anew.

Results are written every few seconds as a new file renamed into place. A killed
evaluation loses at most those seconds, and running it again skips what is there. Where they
cannot be written (a full disk) they are kept and tried again, and only the end fails.
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

from nnit_dist.artifacts import write_atomic
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.rollout import Rollouts
from nnit_dist.evaluate.subjects import Subject

SCHEMA = pa.schema(
    [
        ("policy_id", pa.string()),
        ("fingerprint", pa.string()),
        ("seed", pa.int64()),
        ("success_once", pa.bool_()),
        ("success_at_end", pa.bool_()),
        ("episode_return", pa.float64()),
    ]
)


class EpisodeStore:
    """A directory of Parquet files of episodes.

    Attributes:
        trouble: why the last write failed; empty if it did not.
    """

    def __init__(self, path: Path, flush_s: float = 5.0) -> None:
        self.path, self.flush_s = Path(path), flush_s
        self.trouble = ""
        self._pending: list[pa.Table] = []
        self._flushed = time.monotonic()

    def load(self, subjects: Sequence[Subject]) -> Iterator[tuple[int, Rollouts]]:
        """Stored episodes of `subjects`, by position in it, measured with the same weights."""
        prints = pa.array([f"{s.id}\0{s.fingerprint()}" for s in subjects])
        for file in self._files():
            table = _read(file)
            keys = pc.binary_join_element_wise(table["policy_id"], table["fingerprint"], "\0")
            owners = pc.fill_null(pc.index_in(keys, prints), -1).to_numpy()
            seeds, once, end, returns = (table[name].to_numpy() for name in SCHEMA.names[2:])
            order = np.argsort(owners, kind="stable")
            starts = np.flatnonzero(np.diff(owners[order], prepend=-2))
            for rows in np.split(order, starts[1:]) if len(order) else []:
                if owners[rows[0]] >= 0:
                    yield (
                        int(owners[rows[0]]),
                        Rollouts(tuple(seeds[rows].tolist()), once[rows], end[rows], returns[rows]),
                    )

    def table(self) -> pa.Table:
        """Every stored episode."""
        return pa.concat_tables([SCHEMA.empty_table(), *map(_read, self._files())])

    def add(self, subject: Subject, rollouts: Rollouts) -> None:
        """Keep episodes; every few seconds what was kept is written."""
        count = len(rollouts.seeds)
        columns = [
            pa.repeat(subject.id, count),
            pa.repeat(subject.fingerprint(), count),
            pa.array(rollouts.seeds, pa.int64()),
            pa.array(rollouts.success_once),
            pa.array(rollouts.success_at_end),
            pa.array(rollouts.returns),
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
        """Write what is not yet written.

        Raises:
            NnitError: it cannot be written; it is kept for the next try.
        """
        if self._pending:
            self._write(pa.concat_tables(self._pending))
        self._pending, self._flushed = [], time.monotonic()

    def compact(self) -> None:
        """Write all files as one, every episode once, with its return if that was measured.

        Raises:
            NnitError: what is not yet written cannot be.
        """
        self.flush()
        files = self._files()
        if len(files) < 2:
            return
        table = self.table()
        without_return = np.isnan(table["episode_return"].to_numpy())
        ranks = pa.array(np.arange(len(table)) + len(table) * without_return)
        episodes = table.append_column("rank", ranks).group_by(SCHEMA.names[:3])
        rows = episodes.aggregate([("rank", "min")])["rank_min"].to_numpy() % len(table)
        with contextlib.suppress(NnitError):  # no room for a copy: then they stay several
            self._write(table.take(np.sort(rows)))
            for file in files:
                file.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("*.parquet"))

    def _write(self, table: pa.Table) -> None:
        path = self.path / f"episodes-{uuid.uuid4().hex}.parquet"
        write_atomic(path, lambda partial: pq.write_table(table, partial))


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, schema=SCHEMA)
    except (pa.ArrowInvalid, OSError) as error:
        raise NnitError(
            f"{file} is damaged ({str(error).splitlines()[0]}). Delete it; its episodes "
            "are then measured again."
        ) from None
