"""Stopping where nothing is lost: Ctrl-C, SIGTERM of a scheduler, SIGHUP of a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopRequest(threading.Event):
    """Set once a signal has asked to stop."""

    signum: int = signal.SIGINT
    """Which; of a rank that stops since another was asked, that of Ctrl-C."""


def _signals() -> list[int]:
    """Those that ask to stop; what is ignored, as SIGHUP under nohup, stays ignored."""
    ending = [each for each in (signal.SIGTERM, _HANGUP) if each is not None]
    return [each for each in ending if signal.getsignal(each) is not signal.SIG_IGN]


@contextmanager
def _handled(signals: list[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in signals}
    for each in signals:
        signal.signal(each, handler)
    try:
        yield
    finally:
        for each, handler_before in before.items():
            signal.signal(each, handler_before)


@contextmanager
def deferred_interrupt() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into an event, so that a step is never cut in half.

    A second Ctrl-C interrupts at once; further SIGTERM and SIGHUP do not, since launchers pass on
    what the whole group of processes got already. Does nothing outside the main thread, which
    alone receives signals.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum: int, frame: Any) -> None:
        if not stop.is_set():
            stop.signum = signum
            stop.set()
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt

    with _handled([signal.SIGINT, *_signals()], request):
        yield stop


@contextmanager
def interrupting_signals() -> Iterator[None]:
    """The first SIGTERM or SIGHUP raises :class:`Interrupted`, so that what is open is closed.

    Further ones do not disturb that. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    closing = threading.Event()

    def interrupt(signum: int, frame: Any) -> None:
        if not closing.is_set():
            closing.set()
            raise Interrupted(signum)

    with _handled(_signals(), interrupt):
        yield
