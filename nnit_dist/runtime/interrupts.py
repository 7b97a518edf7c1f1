"""Interrupts: ^C on a terminal, and SIGTERM from a scheduler or a node that is taken away.

The first one raises KeyboardInterrupt, wherever the program is: what is done is kept, and Ray ends
with its session. It is raised again if it comes to nothing, as in a callback of a library. A second
one ends the process at once, and so does a program that has not stopped after some seconds. Ray,
Ray Train and Ray Tune have handlers of their own, which would keep the program going or hide the
interrupt; `handle_interrupts` is called again where they set them.
"""

import os
import signal
import threading
import time
import weakref
from types import FrameType

from nnit_dist.runtime.progress import console

STOP_S, LOOK_EVERY_S = 20.0, 0.5
GOES_ON = "interrupted; the same command goes on."
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Mark:
    """An object that lives as long as the exception that carries it."""


class _State:
    """What has become of the interrupt of this process."""

    enabled = obeyed = repeating = False
    code = 0
    mark: "weakref.ref[_Mark] | None" = None


def handle_interrupts(enable: bool = False) -> None:
    """Set the handlers, if this program has them: `enable` is for its start.

    As a library, and in other threads, the handlers stay those of the program that uses it.
    """
    _State.enabled = _State.enabled or enable
    if _State.enabled and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _interrupt)


def interrupt_code() -> int:
    """The exit code of a program that was interrupted, 130 or 143; 0 if it was not.

    Who asks ends the program: the interrupt is not raised again.
    """
    _State.obeyed = _State.code > 0
    return _State.code


def _interrupt(signum: int, frame: FrameType | None) -> None:
    if _State.code and not _State.repeating:
        os._exit(_State.code)
    _State.repeating = False
    if not _State.code:
        _State.code = 128 + signum
        threading.Thread(target=_see_that_it_stops, daemon=True).start()
    raise _marked_interrupt()


def _marked_interrupt() -> KeyboardInterrupt:
    # (No class of its own: Ray recognizes this one alone where it waits.)
    error, mark = KeyboardInterrupt(), _Mark()
    error.__dict__["mark"], _State.mark = mark, weakref.ref(mark)
    return error


def _see_that_it_stops() -> None:
    """Raise the interrupt again where it is gone and nobody obeyed; at last end the process."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
        if _State.mark is not None and _State.mark() is None and not _State.obeyed:
            _State.repeating = True
            signal.pthread_kill(threading.main_thread().ident or 0, _State.code - 128)
    print(f"\n{GOES_ON}", file=console.file, flush=True)
    os._exit(_State.code)
