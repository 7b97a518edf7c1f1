"""Interrupts: ^C on a terminal, and SIGTERM from a scheduler or a node that is taken away.

The first one raises `Interrupted`, wherever the program is: what is done is kept, and Ray ends with
its session. A second one ends the process at once. Ray, Ray Train and Ray Tune have handlers of
their own, which would keep the program going or hide the interrupt; `handle_interrupts` is called
again where they set them.
"""

import os
import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_enabled = False
_received = 0


class Interrupted(BaseException):
    """The program was told to stop; `code` is its exit code, 130 or 143.

    It is no KeyboardInterrupt, which libraries catch.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted")
        self.code = 128 + signum


def handle_interrupts(enable: bool = False) -> None:
    """Set the handlers, if this program has them: `enable` is for its start.

    As a library, and in other threads, the handlers stay those of the program that uses it.
    """
    global _enabled
    _enabled = _enabled or enable
    if _enabled and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _received
    _received += 1
    if _received > 1:
        os._exit(128 + signum)
    raise Interrupted(signum)
