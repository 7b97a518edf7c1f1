"""`python -m nnit_dist`: the `nnit` command where only the package travels, as in a Ray job."""

from nnit_dist.cli.main import main

if __name__ == "__main__":
    main()
