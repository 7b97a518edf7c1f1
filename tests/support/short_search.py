"""The `nnit` command, whose searches have two rungs instead of three: a rung takes ten seconds."""

from nnit_dist.cli.main import main
from nnit_dist.search.results import RUNGS

if __name__ == "__main__":
    RUNGS["asha"] = (0.5, 1.0)
    main()
