"""Interrupts: ^C on a terminal, and SIGTERM from a scheduler or a node that is taken away.

The first one raises KeyboardInterrupt, wherever the program is: what is done is kept, and Ray ends
with its session. Python ignores it in callbacks, as after a fork; then it is raised again. A second
interrupt ends the process at once, and so does a program that has not stopped after some seconds.
Ray, Ray Train and Ray Tune have handlers of their own, which would keep the program going or hide
the interrupt; `handle_interrupts` is called again where they set them.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

from nnit_dist.runtime.progress import console

STOP_S, AGAIN_S = 20.0, 0.1
GOES_ON = "interrupted; the same command goes on."
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """The exit code after an interrupt, and until when a signal is only to raise it again."""

    enabled = False
    code = 0
    again_until = 0.0


def handle_interrupts(enable: bool = False) -> bool:
    """Set the handlers if this program has them, as `enable` says at its start; returns whether so.

    As a library, and in other threads, the handlers stay those of the program that uses it.
    """
    _State.enabled = _State.enabled or enable
    if _State.enabled and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _interrupt)
        sys.unraisablehook = _raise_again
    return _State.enabled


def interrupt_code() -> int:
    """The exit code of a program that was interrupted, 130 or 143; 0 if it was not."""
    return _State.code


def _interrupt(signum: int, frame: FrameType | None) -> None:
    again = time.monotonic() < _State.again_until
    _State.again_until = 0.0
    if _State.code and not again:
        _end()
    if not _State.code:
        _State.code = 128 + signum
        # (Two: what is said may wait for a terminal.)
        for seconds, end in ((STOP_S, _say_and_end), (STOP_S + 1, _end)):
            late = threading.Timer(seconds, end)
            late.daemon = True
            late.start()
    # (No class of its own: Ray recognizes this one alone where it waits.)
    raise KeyboardInterrupt


def _raise_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Raise an interrupt again, after the callback in which Python has ignored it."""
    if ignored.exc_type is not KeyboardInterrupt or not _State.code:
        sys.__unraisablehook__(ignored)
        return

    def signal_main() -> None:
        if signal.getsignal(_State.code - 128) is _interrupt:
            _State.again_until = time.monotonic() + AGAIN_S
            signal.pthread_kill(threading.main_thread().ident or 0, _State.code - 128)

    later = threading.Timer(AGAIN_S, signal_main)
    later.daemon = True
    later.start()


def _say_and_end() -> None:
    try:
        print(f"\n{GOES_ON}", file=console.file, flush=True)
    finally:
        _end()


def _end() -> None:
    os._exit(_State.code)
