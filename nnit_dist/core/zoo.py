"""The zoo: a Parquet dataset of policies with their measured success, one policy a row.

Every write adds a file, which appears under its name only when it is complete. So any number of
trials can write at once, and readers never see half a file.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import write_atomic
from nnit_dist.core.policy import Policy, unflatten
from nnit_dist.core.storage import path_of
from nnit_dist.core.topology import Hidden, Topology, check_activation, hidden_name
from nnit_dist.core.zoo_file import (
    MOST_ROWS,
    MOST_TEXT,
    MOST_WEIGHTS,
    NO_WEIGHTS,
    SCHEMA,
    ZooRow,
    open_file,
    read_group,
    readable,
    rows_of,
)

GROUP_BYTES = 16 << 20  # of weights in a row group; a reader holds one row group in memory


@dataclass
class Member:
    """A policy of the zoo, where it comes from, and its measured success.

    `env_steps` is how long it was trained, `mean_return` the mean return of an episode.
    """

    policy: Policy
    trial: str
    seed: int
    env_steps: int
    success_once: float
    success_at_end: float
    mean_return: float

    def row(self) -> ZooRow:
        """The member as a row, with its weights float32 [num_params]."""
        topology = self.policy.topology
        return {
            "id": self.policy.id,
            "task": self.policy.task,
            "control_mode": self.policy.control_mode,
            "obs_dim": topology.obs_dim,
            "act_dim": topology.act_dim,
            "hidden": list(topology.hidden),
            "activation": topology.activation,
            "source": self.policy.source,
            "trial": self.trial,
            "seed": self.seed,
            "env_steps": self.env_steps,
            "success_once": self.success_once,
            "success_at_end": self.success_at_end,
            "return": self.mean_return,
            "weights": self.policy.flat(),
        }

    @classmethod
    def from_row(cls, row: ZooRow) -> "Member":
        """The member of a row that has weights.

        Raises:
            NnitError: the weights do not fit the topology, an id cannot be a name, or a value is
                missing.
        """
        if problem := _missing(row, SCHEMA.names):
            raise NnitError(problem)
        if not all(row["hidden"]):
            raise NnitError(f"policy {row['id'][:40]!r} of a zoo has hidden={row['hidden'][:8]}.")
        activation = check_activation(row["activation"])
        topology = Topology(row["obs_dim"], tuple(row["hidden"]), row["act_dim"], activation)
        weights = unflatten(np.array(row["weights"], dtype=np.float32), topology)
        policy = Policy(
            topology, weights, row["task"], row["source"], row["control_mode"], row["id"]
        ).check_names()
        return cls(
            policy,
            row["trial"],
            row["seed"],
            row["env_steps"],
            row["success_once"],
            row["success_at_end"],
            row["return"],
        )


class Zoo:
    """A directory of Parquet files that together hold a population."""

    def __init__(self, path: Path) -> None:
        self.path = path_of(path)

    def append(self, members: list[Member]) -> Path:
        """Write `members` to a new file and return its path, which only their ids determine.

        Raises:
            NnitError: a text or a policy is too large to be read again.
        """
        for member in members:
            policy = member.policy
            texts = (policy.id, policy.task, policy.control_mode, policy.source, member.trial)
            if max(len(text.encode()) for text in texts) > MOST_TEXT:
                raise NnitError(f"policy {policy.id[:40]!r} has a text of over {MOST_TEXT} bytes.")
            if policy.topology.num_params > MOST_WEIGHTS:
                raise NnitError(
                    f"policy {policy.id!r} has more than the {MOST_WEIGHTS:,} weights of a zoo's."
                )
        key = _key(m.policy.id for m in members)
        table = pa.Table.from_pylist([member.row() for member in members], schema=SCHEMA)
        return self._write(key, [table])

    def _write(self, key: str, tables: Iterable[pa.Table]) -> Path:
        """Write a file in row groups of up to `GROUP_BYTES` of weights."""

        def write(partial: Path) -> None:
            with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
                for table in tables:
                    largest = max(map(len, table["weights"].to_numpy()))
                    rows = min(MOST_ROWS, GROUP_BYTES // (4 * largest))
                    writer.write_table(table, row_group_size=max(1, rows))

        return write_atomic(self.path / f"part-{key}.parquet", write)

    def files(self) -> list[Path]:
        """The Parquet files, without those that are still being written."""
        return sorted(self.path.glob("[!.]*.parquet"))

    def scan(
        self,
        *,
        tasks: Sequence[str] | None = None,
        hidden: Sequence[tuple[int, ...]] | None = None,
        success: tuple[float, float] = (0.0, 1.0),
        ids: Sequence[str] | None = None,
        share: tuple[int, int] = (0, 1),
        weights: bool = True,
    ) -> Iterator[pa.Table]:
        """Matching rows, one row group at a time.

        Only one row group is in memory, and its weights only if one of its rows matches.

        Args:
            success: lowest and highest `success_once`.
            share: (rank, workers). Each row group goes to one of the workers.
            weights: whether the tables have the column `weights`.

        Raises:
            NnitError: a file is damaged or is not a zoo file.
        """
        names = None if hidden is None else [hidden_name(widths) for widths in hidden]
        wanted = {"task": tasks, "id": ids, "hidden": names}
        rank, workers = share
        number = -1
        for path in self.files():
            with open_file(path) as file:
                for group in range(file.num_row_groups):
                    number += 1
                    if number % workers != rank:
                        continue
                    with readable(path):
                        table = read_group(file, group, weights=False)
                        keep = _matches(table, wanted, success)
                        if not pc.any(keep).as_py():
                            continue
                        if weights:
                            table = read_group(file, group)
                    yield table.filter(keep)

    def rows(self, **wanted: Any) -> list[ZooRow]:
        """Rows without weights, sorted by id; `wanted` as in `scan`.

        Raises:
            NnitError: a file is damaged, or a row lacks a value.
        """
        rows = [row for t in self.scan(weights=False, **wanted) for row in rows_of(t)]
        for row in rows:
            if problem := _missing(row, NO_WEIGHTS):
                raise NnitError(f"{problem} See `nnit zoo verify {self.path}`.")
        return sorted(rows, key=itemgetter("id"))

    def topologies(self) -> set[Hidden]:
        """Hidden widths of all policies."""
        return {tuple(row["hidden"]) for row in self.rows()}

    def members(self, **wanted: Any) -> Iterator[Member]:
        """Members, one row group in memory at a time; `wanted` as in `scan`."""
        for table in self.scan(**wanted):
            yield from map(Member.from_row, rows_of(table))

    def get(self, policy_id: str) -> Member:
        """The member with an id; NnitError if there is none."""
        for member in self.members(ids=[policy_id]):
            return member
        raise NnitError(f"the zoo {self.path} has no policy {policy_id!r}; see `nnit zoo ls`.")

    def compact(self) -> int:
        """Merge all files into a single one without duplicates; returns the number of policies.

        No other process may write meanwhile. If it is killed, some policies may be there twice but
        none is lost; the next call removes the duplicates.
        """
        sources, seen = self.files(), set[str]()

        def distinct() -> Iterator[pa.Table]:
            for table in self.scan():
                ids = table["id"].to_pylist()
                fresh = [policy_id not in seen for policy_id in ids]
                seen.update(ids)
                if any(fresh):
                    yield table.filter(pa.array(fresh))

        tables = self.scan(weights=False)
        ids = sorted({policy_id for table in tables for policy_id in table["id"].to_pylist()})
        target = self._write(_key(ids), distinct())
        for path in sources:
            if path != target:
                path.unlink()
        return len(seen)

    def verify(self) -> list[str]:
        """Problems, a line each: unreadable files, wrong shapes, NaN, duplicate ids."""
        problems: list[str] = []
        owner: dict[str, str] = {}
        if not self.files():
            return [f"{self.path} holds no Parquet files"]
        for path in self.files():
            try:
                for row in _rows_in(path):
                    problems += [f"{path.name}: {row['id']}: {p}" for p in _row_problems(row)]
                    if row["id"] in owner:
                        problems.append(f"{path.name}: {row['id']} is also in {owner[row['id']]}")
                    owner[row["id"]] = path.name
            except NnitError as error:
                problems.append(str(error))
        return problems


def best_of_trials(members: Iterable[Member]) -> list[Member]:
    """The best snapshot of each trial, by success, then return; sorted by trial."""
    best: dict[str, Member] = {}
    for member in members:
        current = best.get(member.trial)
        if current is None or _merit(member) > _merit(current):
            best[member.trial] = member
    return [best[trial] for trial in sorted(best)]


def _missing(row: ZooRow, names: Iterable[str]) -> str:
    """A sentence on the first value that a row lacks; empty if it has all."""
    missing = [name for name in names if row.get(name) is None]
    return f"policy {str(row['id'])[:40]!r} of a zoo has no {missing[0]}." if missing else ""


def _merit(member: Member) -> tuple[float, float]:
    return (member.success_once, member.mean_return)


def _key(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def _matches(
    table: pa.Table, wanted: dict[str, Sequence[str] | None], success: tuple[float, float]
) -> pa.ChunkedArray:
    """Which rows are wanted, bool [rows]."""
    lowest, highest = success
    column = table["success_once"]
    keep = pc.and_(pc.greater_equal(column, lowest), pc.less_equal(column, highest))
    keep = pc.fill_null(keep, True)  # a row without success is to be seen, too
    for name, values in wanted.items():
        if values is None:
            continue
        column = table[name]
        if name == "hidden":
            column = pc.binary_join(column.cast(pa.list_(pa.string())), "x")
        keep = pc.and_(keep, pc.is_in(column, pa.array(values, pa.string())))
    return keep


def _rows_in(path: Path) -> Iterator[ZooRow]:
    with open_file(path) as file:
        for group in range(file.num_row_groups):
            with readable(path):
                table = read_group(file, group)
            yield from rows_of(table)


def _row_problems(row: ZooRow) -> list[str]:
    try:
        Member.from_row(row).policy.check_finite(row["id"])
    except (NnitError, TypeError) as error:
        return [str(error)]
    problems = []
    success = {"success_once": row["success_once"], "success_at_end": row["success_at_end"]}
    for name, value in success.items():
        if not 0.0 <= value <= 1.0:
            problems.append(f"{name} is {value}, not within 0 and 1")
    return problems
