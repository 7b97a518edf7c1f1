"""The `nnit` command with short searches: two rungs, and a test of few episodes.

A rung takes ten seconds, and the test has 46 topologies.
"""

from nnit_dist.cli.main import main
from nnit_dist.search import final
from nnit_dist.search.results import RUNGS

if __name__ == "__main__":
    RUNGS["asha"] = (0.5, 1.0)
    final.SAMPLES, final.EPISODES = 1, 3
    main()
