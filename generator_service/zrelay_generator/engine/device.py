"""The only thread that runs torch. It waits for jobs and ticks, and never for a caller."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

import torch

from zrelay_generator.engine.engine import StepEngine
from zrelay_generator.engine.job import DeviceJob
from zrelay_shared.torch_devices import is_device_lost

log = logging.getLogger(__name__)
_MOST_FAILURES = 3
"""Ticks in a row that may raise without any one job's fault before the thread gives up."""
LOST = "the GPU failed for good in this process (the log has CUDA's error): restart the process"
BROKEN = "the engine failed repeatedly (the log has the errors): restart the process"
ThreadEnded = Callable[[list[str]], None]
"""Called on the device thread when it ended without `stop`, with the ids of the jobs that it was running."""


class DeviceThread:
    """Owns the engine. `add` and `stop` may be called from any thread and return at once.

    Attributes:
        broken: Why the thread ended although `stop` was not called, "" if it has not ended.
    """

    def __init__(self, threads: int | None, ended: ThreadEnded = lambda suspects: None) -> None:
        """Creates the thread without starting it.

        Args:
            threads: Torch threads on a CPU; None keeps torch's own number.
            ended: Called if the thread ends although `stop` was not called.
        """
        self._threads, self._ended = threads, ended
        self.broken = ""
        self._changed = threading.Condition()
        self._arrived: list[DeviceJob] = []
        self._stopping = False
        self._engine: StepEngine | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._loaded: Future[None] = Future()
        self._load: Callable[[], StepEngine] | None = None

    def start(self, load: Callable[[], StepEngine]) -> Future[None]:
        """Starts the thread with `load`.

        Returns:
            A future that is done when the engine is loaded, or has the exception of `load`. It cannot be cancelled: a
            load under way is not interrupted, and `stop` ends the thread after it.
        """
        self._load = load
        self._loaded.set_running_or_notify_cancel()
        self._thread.start()
        return self._loaded

    def add(self, job: DeviceJob) -> None:
        """Passes a job to the engine."""
        with self._changed:
            self._arrived.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread after the current tick."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Waits at most `timeout_s` seconds for the thread to end."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def problem(self) -> str:
        """Description of what is wrong with the device; "" if nothing is wrong."""
        if self.broken:
            return self.broken
        overdue = self.overdue_s
        return f"the device is {overdue:.0f} s over any time that its work could take" if overdue else ""

    @property
    def overdue_s(self) -> float:
        """Seconds by which the current unit of work exceeds its longest plausible time; 0 if nothing is wrong."""
        engine = self._engine
        return 0.0 if engine is None else engine.overdue_s

    def wake(self) -> None:
        """Checks again whether the engine has work."""
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            if self._load is None:
                raise RuntimeError("load: expected a function, got none")
            self._engine = engine = self._load()
        except BaseException as error:  # of any kind: the caller of `start` must receive it
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(None)
        try:
            with torch.inference_mode():
                self.broken = self._tick_on(engine)
        except BaseException:  # of any kind: nobody may wait for a thread that has ended
            log.exception("the device thread failed")
            self.broken = BROKEN
        if self.broken:
            self._ended(engine.suspects)
        engine.close()

    def _tick_on(self, engine: StepEngine) -> str:
        """Runs ticks until `stop` is called.

        A tick that raises is a bug, most likely in a combination of what these jobs request. Ending the thread would
        end all other jobs too, so the engine is emptied and continues. If that does not help, a new process might:
        waiting jobs are on disk, which is better for them than failing one by one.

        Returns:
            Why the device or the engine cannot continue, "" if the thread was stopped by `stop`.
        """
        failures = 0
        while True:
            try:
                # Inside the try block: the engine also looks for work to decide whether to wait. What raises there
                # raises in every process until the jobs that cause it are ended.
                if not self._take_arrivals(engine):
                    return ""
                engine.tick()
                failures = 0
            except Exception as error:
                failures += 1
                if is_device_lost(error):
                    log.critical("the device is lost", exc_info=error)
                    return LOST
                if failures == _MOST_FAILURES:
                    log.critical("the engine failed %d times in a row", failures, exc_info=error)
                    return BROKEN
                engine.abandon(error)

    def _take_arrivals(self, engine: StepEngine) -> bool:
        """Waits until there is work. Returns False when the thread is to end."""
        with self._changed:
            while (engine.idle or engine.waits) and not self._arrived and not self._stopping:
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            stopping = self._stopping
        for job in arrived:
            engine.add(job)
        return not stopping
