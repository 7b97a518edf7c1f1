"""The zoo: a Parquet dataset of policies with their measured success.

One row a policy. Writers append a file each, renamed into place, so any number
of trials can write at once and a reader never sees half a file.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nnit_dist.errors import NnitError
from nnit_dist.policy import Policy, unflatten
from nnit_dist.topology import Topology

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
        ("parent", pa.string()),
        ("seed", pa.int64()),
        ("env_steps", pa.int64()),
        ("success_once", pa.float64()),
        ("success_at_end", pa.float64()),
        ("return", pa.float64()),
        ("weights", pa.list_(pa.float32())),
    ]
)
_NO_WEIGHTS = [name for name in SCHEMA.names if name != "weights"]


@dataclass
class Member:
    """One row of the zoo: a policy, where it comes from, and what it reached."""

    policy: Policy
    parent: str
    seed: int
    env_steps: int
    success_once: float
    success_at_end: float
    mean_return: float

    def row(self) -> dict:
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
            "parent": self.parent,
            "seed": self.seed,
            "env_steps": self.env_steps,
            "success_once": self.success_once,
            "success_at_end": self.success_at_end,
            "return": self.mean_return,
            "weights": self.policy.flat(),
        }

    @classmethod
    def from_row(cls, row: dict) -> "Member":
        topology = Topology(row["obs_dim"], tuple(row["hidden"]), row["act_dim"], row["activation"])
        weights = unflatten(np.asarray(row["weights"], dtype=np.float32), topology)
        policy = Policy(
            topology, weights, row["task"], row["source"], row["control_mode"], row["id"]
        )
        return cls(
            policy,
            row["parent"],
            row["seed"],
            row["env_steps"],
            row["success_once"],
            row["success_at_end"],
            row["return"],
        )


class Zoo:
    """A directory of Parquet files that together hold a population."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def append(self, members: list[Member]) -> Path:
        """Write `members` as one new file. The same members always get the same file name."""
        self.path.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([member.row() for member in members], schema=SCHEMA)
        key = hashlib.sha256("\n".join(m.policy.id for m in members).encode()).hexdigest()[:16]
        partial = self.path / f".{key}.{os.getpid()}.tmp"
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        return partial.replace(self.path / f"part-{key}.parquet")

    def files(self) -> list[Path]:
        return sorted(self.path.glob("*.parquet"))

    def rows(self, weights: bool = False) -> list[dict]:
        """All rows as dicts, sorted by id; the weights only on request."""
        columns = None if weights else _NO_WEIGHTS
        rows = [row for file in self.files() for row in _read(file, columns).to_pylist()]
        return sorted(rows, key=lambda row: row["id"])

    def members(self) -> Iterator[Member]:
        """Every member, one file in memory at a time."""
        for file in self.files():
            for row in _read(file, None).to_pylist():
                yield Member.from_row(row)

    def get(self, policy_id: str) -> Member:
        """The member with this id; NnitError if there is none."""
        for member in self.members():
            if member.policy.id == policy_id:
                return member
        raise NnitError(f"the zoo {self.path} has no policy {policy_id!r}; see `nnit zoo ls`.")

    def verify(self) -> list[str]:
        """Problems found, one line each: unreadable files, wrong shapes, NaN, doubled ids."""
        problems: list[str] = []
        owner: dict[str, str] = {}
        if not self.files():
            return [f"{self.path} holds no Parquet files"]
        for file in self.files():
            try:
                rows = _read(file, None).to_pylist()
            except NnitError as error:
                problems.append(str(error))
                continue
            for row in rows:
                problems += [f"{file.name}: {row['id']}: {p}" for p in _row_problems(row)]
                if row["id"] in owner:
                    problems.append(f"{file.name}: {row['id']} is also in {owner[row['id']]}")
                owner[row["id"]] = file.name
        return problems


def best_of_trials(members: Iterable[Member]) -> list[Member]:
    """The best snapshot of every trial, by success, then return; sorted by trial."""
    best: dict[str, Member] = {}
    for member in members:
        rival = best.get(member.parent)
        if rival is None or _merit(member) > _merit(rival):
            best[member.parent] = member
    return [best[parent] for parent in sorted(best)]


def _merit(member: Member) -> tuple[float, float]:
    return (member.success_once, member.mean_return)


def _read(file: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns, schema=SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, ValueError) as error:
        raise NnitError(
            f"{file} is damaged or not a zoo file ({str(error).splitlines()[0]}). The other "
            "files are untouched; move this one away and run `nnit population` again to refill it."
        ) from None


def _row_problems(row: dict) -> list[str]:
    try:
        Member.from_row(row).policy.check_finite(row["id"])
    except (NnitError, TypeError) as error:
        return [str(error)]
    problems = []
    for name in ("success_once", "success_at_end"):
        if not 0.0 <= row[name] <= 1.0:
            problems.append(f"{name} is {row[name]}, not within 0 and 1")
    return problems
