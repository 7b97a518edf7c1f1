"""The `nnit` command; `python -m nnit_dist` where only the package travels, as in a Ray job."""

import os
import signal


def main() -> None:
    """Run the `nnit` command; an interrupt while it loads ends it without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: os._exit(128 + signum))
    from nnit_dist.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
