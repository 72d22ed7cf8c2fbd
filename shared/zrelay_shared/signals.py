"""Signals of the process on an event loop, on POSIX and on Windows."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signals(names: tuple[str, ...], action: Callable[[], object]) -> Iterator[bool]:
    """Runs `action` on the running event loop whenever the process receives one of the signals.

    Windows' event loops have no `add_signal_handler`. There a handler of the process wakes the loop.

    Args:
        names: Names such as "SIGINT". Signals that the platform does not have are skipped: Windows has no SIGHUP.
        action: What to run.

    Yields:
        Whether the handlers are installed; only the main thread can install them.
    """
    loop = asyncio.get_running_loop()
    numbers: list[signal.Signals] = [getattr(signal, name) for name in names if hasattr(signal, name)]
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
