"""Interrupts: ^C on a terminal, and SIGTERM from a scheduler or a node that is taken away.

The first one raises KeyboardInterrupt, wherever the program is: what is done is kept, and Ray ends
with its session. A second one ends the process at once, and so does a program that has not stopped
after some seconds. Ray, Ray Train and Ray Tune have handlers of their own, which would keep the
program going or hide the interrupt; `handle_interrupts` is called again where they set them.
"""

import os
import signal
import threading
from types import FrameType

STOP_S = 20.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_enabled = False
_code = 0


def handle_interrupts(enable: bool = False) -> None:
    """Set the handlers, if this program has them: `enable` is for its start.

    As a library, and in other threads, the handlers stay those of the program that uses it.
    """
    global _enabled
    _enabled = _enabled or enable
    if _enabled and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _interrupt)


def interrupt_code() -> int:
    """The exit code of a program that was interrupted, 130 or 143; 0 if it was not."""
    return _code


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _code
    if _code:
        os._exit(_code)
    _code = 128 + signum
    late = threading.Timer(STOP_S, os._exit, (_code,))
    late.daemon = True
    late.start()
    # (No class of its own: Ray recognises this one alone where it waits.)
    raise KeyboardInterrupt
