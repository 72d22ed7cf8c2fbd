"""Signals of the process on an event loop, on POSIX and on Windows."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINATING = ("SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that ask a process to end: of `kill`, `timeout` and `docker stop`, of a closed terminal, and on Windows of
Ctrl-Break and a closed console. SIGINT, which Ctrl-C sends, is not one of them: a command may ask what to do."""


@contextmanager
def on_signals(names: tuple[str, ...], action: Callable[[], object]) -> Iterator[bool]:
    """Runs `action` on the running event loop whenever the process receives one of the signals.

    Windows' event loops have no `add_signal_handler`. There a handler of the process wakes the loop. A SIGHUP that the
    process ignores, as under `nohup`, stays ignored.

    Args:
        names: Names such as "SIGINT". Signals that the platform does not have are skipped: Windows has no SIGHUP.
        action: What to run.

    Yields:
        Whether the handlers are installed; only the main thread can install them.
    """
    import asyncio  # not needed by a help

    loop = asyncio.get_running_loop()
    numbers = _numbers(names)
    try:
        for number in numbers:
            loop.add_signal_handler(number, action)
    except NotImplementedError:
        with _process_handlers(numbers, lambda: loop.call_soon_threadsafe(action)) as installed:
            yield installed
        return
    except (RuntimeError, ValueError):  # not the main thread
        yield False
        return
    try:
        yield True
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _numbers(names: tuple[str, ...]) -> list[signal.Signals]:
    """Returns the signals that the platform has, without a SIGHUP that is ignored."""
    known: list[signal.Signals] = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [one for one in known if one.name != "SIGHUP" or signal.getsignal(one) != signal.SIG_IGN]


def on_termination(action: Callable[[int], object]) -> None:
    """Calls `action` with the number of a signal of TERMINATING, for the rest of the process. The main thread calls it.

    `action` runs between any two instructions of the main thread: it raises an exception.
    """
    for number in _numbers(TERMINATING):
        signal.signal(number, lambda number, _frame: action(number))


@contextmanager
def _process_handlers(numbers: list[signal.Signals], action: Callable[[], object]) -> Iterator[bool]:
    previous = {}
    try:
        for number in numbers:
            previous[number] = signal.signal(number, lambda _number, _frame: action())
    except ValueError:  # not the main thread
        yield False
        return
    try:
        yield True
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
