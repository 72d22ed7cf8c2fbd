"""The one thread that runs torch: it waits for jobs, ticks, and never for a caller."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

import torch

from zrelay_generator.engine.engine import Engine
from zrelay_generator.engine.job import Job
from zrelay_shared.torch_devices import is_device_lost

log = logging.getLogger(__name__)
_MOST_FAILURES = 3
"""Ticks that may fail in a row where no job of theirs did."""
LOST = "the GPU has failed for good in this process (CUDA's error is in the log): it must be started again"
BROKEN = "the engine failed again and again (the log says how): it must be started again"
Ended = Callable[[list[str]], None]
"""Hears, on the device thread, that it has ended, and of the ids of the jobs that were at work."""


class DeviceThread:
    """Owns the engine. `add` and `stop` may be called from any thread and return at once.

    Attributes: `broken` why it has ended without having been asked to, "" where it has not.
    """

    def __init__(self, threads: int | None, ended: Ended = lambda suspects: None) -> None:
        """`threads` of torch on a CPU; None leaves torch's own number. `ended` is called where it ends unasked."""
        self._threads, self._ended = threads, ended
        self.broken = ""
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
        if self.broken:
            return self.broken
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
        try:
            with torch.inference_mode():
                self.broken = self._tick_on(engine)
        except BaseException:  # whatever it is: nobody may wait for a thread that is no more
            log.exception("the device thread failed")
            self.broken = BROKEN
        if self.broken:
            self._ended(engine.suspects)
        engine.close()

    def _tick_on(self, engine: Engine) -> str:
        """Until the thread is to end, which gives "", or until the device or the engine is beyond help: why.

        A tick that raised is a bug, most likely of what these jobs ask for together. To end for it would take all the
        other jobs along, so the engine is emptied, which leaves nothing of it to be wrong, and goes on. Where that does
        not help, a new process might: those that wait are on disk, and better off there than failed one by one.
        """
        failures = 0
        while True:
            try:
                # In here, since to wait the engine looks for work as well: what raises there raises in every process
                # until the jobs that make it raise are ended, and it is not the fault of those at work.
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
