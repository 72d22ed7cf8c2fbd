"""Many pictures as the command line does it: written as they come, failures told beside them."""

import contextlib
import time
from typing import Any

from zrelay_client.cli._console import Console, spoken_seconds
from zrelay_client.cli._interrupts import interruptible
from zrelay_client.cli._painting import ComeBack, GenerateCommand, file_told, leaver, warnings_of
from zrelay_client.client import AsyncClient
from zrelay_client.events import Event, Notice, Preview
from zrelay_client.results import Outcome
from zrelay_client.settings import Settings
from zrelay_shared import exits


class BatchWriter:
    """A batch on its way: what is written, what failed, and the line that says so."""

    def __init__(self, order: GenerateCommand, total: int, console: Console, *, say_paths: bool) -> None:
        self._order, self._total, self._console, self._say_paths = order, total, console, say_paths
        self._started = time.monotonic()
        self.files: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.code = exits.OK
        self._warned: set[str] = set()

    def event(self, index: int, event: Event) -> None:
        """Previews are written, notices told; steps of many pictures at once are nobody's news."""
        if isinstance(event, Preview) and self._order.previews is not None:
            self._order.previews.write(event, job=index)
        elif isinstance(event, Notice):
            self._warn(event.message)

    def outcome(self, outcome: Outcome) -> None:
        """Writes what came, or tells what failed. Raises OSError."""
        result, error = outcome.result, outcome.error
        if error is not None:
            self.code = self.code or exits.code_of(error)
            self.failures.append({"seed": outcome.seed, "reason": error.reason, "message": error.message})
            self._console.line(f"error: seed {outcome.seed}: {error.message}")
        if result is not None:
            for warning in warnings_of(result):
                self._warn(warning)
            for image in result.images:
                place = outcome.index * len(result.images) + image.image_index
                path = self._order.targets.write_one(place, image)
                self.files.append({**file_told(image, path), "generator": result.generator, "job_id": result.job_id})
                if self._say_paths:
                    self._console.out(str(path))
        took = time.monotonic() - self._started
        failed = f", {len(self.failures)} failed" if self.failures else ""
        done = len(self.files) + len(self.failures)
        self._console.status(f"{done}/{self._total} pictures{failed}, {done / took:.2f} a second", now=False)

    def summary(self) -> str:
        """What is said at the end."""
        took = time.monotonic() - self._started
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"{len(self.files)} pictures{failed} in {spoken_seconds(took)}"

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._console.line(f"note: {text}")


async def paint_many(
    order: GenerateCommand,
    seeds: list[int],
    in_flight: int | None,
    settings: Settings,
    console: Console,
    come_back: ComeBack,
    *,
    say_paths: bool,
) -> tuple[dict[str, Any], int]:
    """Paints a job for each seed and writes what comes; what is to be told of it, and the exit code: that of the first
    failure. Raises ZrelayError where nothing can begin, OSError, and Interrupted."""
    order.check()
    batch = BatchWriter(order, order.targets.count, console, say_paths=say_paths)
    console.status("connecting")
    async with AsyncClient.from_settings(settings) as client:

        async def work() -> None:
            outcomes = client.generate_many(
                order.what(),
                order.options,
                seeds=seeds,
                negative_prompt=order.negative_prompt,
                in_flight=in_flight,
                on_event=batch.event,
            )
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    batch.outcome(outcome)

        stopped = "what was not written yet is cancelled at the generators"
        await interruptible(work(), warn=console.status, leave=leaver(client, come_back), stopped=stopped)
    console.line(batch.summary())
    return {"files": batch.files, "failures": batch.failures, "endpoints": settings.texts}, batch.code
