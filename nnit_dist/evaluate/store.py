"""Where episodes are kept: Parquet, one row an episode, keyed by (policy, seed).

A row carries the fingerprint of the weights that it was measured with, so that a
policy that was written anew under the same id is measured anew.

Results are written every few seconds as a new file renamed into place. A killed
evaluation loses at most those seconds, and running it again skips what is there.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nnit_dist.artifacts import write_atomic
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.rollout import Episode
from nnit_dist.policy import Policy

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
    """A directory of Parquet files of episodes."""

    def __init__(self, path: Path, flush_s: float = 5.0) -> None:
        self.path, self.flush_s = Path(path), flush_s
        self._pending: list[dict] = []
        self._flushed = time.monotonic()

    def load(self, policies: Sequence[Policy]) -> dict[tuple[str, int], Episode]:
        """Stored episodes of `policies` by (policy id, seed); repeated ones are equal."""
        fingerprints = {policy.id: policy.fingerprint() for policy in policies}
        episodes = {}
        for file in sorted(self.path.glob("*.parquet")):
            try:
                rows = pq.read_table(file, schema=SCHEMA).to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise NnitError(
                    f"{file} is damaged ({str(error).splitlines()[0]}). Delete it; its episodes "
                    "are then measured again."
                ) from None
            for row in rows:
                if row.pop("fingerprint") != fingerprints.get(row["policy_id"]):
                    continue
                episodes[(row["policy_id"], row["seed"])] = Episode(**row)
        return episodes

    def add(self, policy: Policy, episodes: list[Episode]) -> None:
        fingerprint = policy.fingerprint()
        self._pending += [asdict(episode) | {"fingerprint": fingerprint} for episode in episodes]
        if time.monotonic() - self._flushed > self.flush_s:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            table = pa.Table.from_pylist(self._pending, schema=SCHEMA)
            path = self.path / f"episodes-{uuid.uuid4().hex}.parquet"
            write_atomic(path, lambda partial: pq.write_table(table, partial))
        self._pending, self._flushed = [], time.monotonic()
