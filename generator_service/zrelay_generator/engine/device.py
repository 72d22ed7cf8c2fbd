"""The one thread that runs torch: it waits for jobs, ticks, and never for a caller."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from zrelay_generator.engine.engine import Engine
from zrelay_generator.engine.job import Job

log = logging.getLogger(__name__)
T = TypeVar("T")


class DeviceThread:
    """Owns the engine. `add` and `stop` may be called from any thread and return at once."""

    def __init__(self, threads: int | None) -> None:
        """`threads` of torch on a CPU; None leaves torch's own number."""
        self._threads = threads
        self._changed = threading.Condition()
        self._arrived: list[Job] = []
        self._stopping = False
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._loaded: Future[None] = Future()
        self._load: Callable[[], Engine] | None = None

    def start(self, load: Callable[[], Engine]) -> Future[None]:
        """Begins with `load` on the thread; the future is done when the engine is there, or has its exception.

        It cannot be cancelled: a load under way is not interrupted, `stop` ends the thread after it.
        """
        self._load = load
        self._loaded.set_running_or_notify_cancel()
        self._thread.start()
        return self._loaded

    def add(self, job: Job) -> None:
        """Hands a job over."""
        with self._changed:
            self._arrived.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread after the tick it is in."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def stuck(self) -> str:
        """ "" while all is well, else what is wrong with the device, for people."""
        if self._loaded.done() and not self._stopping and not self._thread.is_alive():
            return "the device thread has ended"
        over = self.stuck_s
        return f"the device is {over:.0f} s over any time that its work could take" if over else ""

    @property
    def stuck_s(self) -> float:
        """Seconds by which the device is over any time that the unit it works on could take; 0 while all is well."""
        engine = self._engine
        return 0.0 if engine is None else engine.stuck_s

    def wake(self) -> None:
        """Looks again whether the engine has something to do."""
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            if self._load is None:
                raise RuntimeError("load: expected a function, got none")
            self._engine = engine = self._load()
        except BaseException as error:  # whoever waits for the engine must hear of it, whatever it is
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(None)
        with torch.inference_mode():
            while self._take_arrivals(engine):
                engine.tick()
        engine.close()

    def _take_arrivals(self, engine: Engine) -> bool:
        """Waits until there is something to do; False when the thread is to end."""
        with self._changed:
            while (engine.idle or engine.waits) and not self._arrived and not self._stopping:
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            stopping = self._stopping
        for job in arrived:
            engine.add(job)
        return not stopping
