"""What `zrelay generate` does once it is known what is wanted: left, many or one; told at the end."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import click

from zrelay_client.cli._batch import paint_many
from zrelay_client.cli._coming_back import command_for
from zrelay_client.cli._console import Console, spoken_seconds
from zrelay_client.cli._detaching import submit
from zrelay_client.cli._generate_flags import BatchFlags
from zrelay_client.cli._interrupts import Interrupted
from zrelay_client.cli._job_table import plain_job
from zrelay_client.cli._painting import GenerateCommand, paint
from zrelay_client.events import Job
from zrelay_client.settings import Settings
from zrelay_shared import exits


@dataclass(frozen=True, slots=True)
class Run:
    """One command: an order, a job for each of `seeds` where there are any, and how it is told."""

    order: GenerateCommand
    seeds: list[int] | None
    batch: BatchFlags
    settings: Settings
    console: Console
    as_json: bool

    def __call__(self) -> int:
        """The exit code. Raises ZrelayError, OSError, and KeyboardInterrupt with what became of it after Ctrl-C."""
        try:
            if self.batch.detach:
                return self._detached()
            return self._one() if self.seeds is None else self._many(self.seeds)
        except Interrupted as ended:
            raise KeyboardInterrupt(str(ended)) from None
        finally:
            self.console.clear()

    def _come_back(self, job: Job) -> str:
        return command_for(job, self.settings)

    def _detached(self) -> int:
        jobs = asyncio.run(submit(self.order, self.seeds, self.settings, self.console))
        self.console.clear()
        if self.as_json:
            click.echo(json.dumps({"jobs": [plain_job(job) for job in jobs]}, ensure_ascii=False))
            return exits.OK
        for job in jobs:
            click.echo(job.job_id)
        ways = f"`{self._come_back(jobs[-1])}`, or with `fetch` in place of `watch`"
        self.console.line(f"left to {jobs[-1].endpoint}; come back with {ways}")
        return exits.OK

    def _many(self, seeds: list[int]) -> int:
        work = paint_many(
            self.order,
            seeds,
            self.batch.in_flight,
            self.settings,
            self.console,
            self._come_back,
            say_paths=not self.as_json,
        )
        said, code = asyncio.run(work)
        if self.as_json:
            click.echo(json.dumps(said, ensure_ascii=False))
        return code

    def _one(self) -> int:
        said = asyncio.run(paint(self.order, self.settings, self.console, self._come_back))
        self.console.clear()
        if self.as_json:
            click.echo(json.dumps(said, ensure_ascii=False))
        else:
            for file in said["files"]:
                if file["path"] != "-":
                    click.echo(file["path"])
        self._report(said)
        return exits.OK

    def _report(self, said: dict[str, Any]) -> None:
        sampling, timings = said["sampling"], said["timings_s"]
        for warning in said["warnings"]:
            self.console.line(f"note: {warning}")
        self.console.line(
            f"{sampling['width']} x {sampling['height']}, {sampling['num_inference_steps']} steps, seed "
            f"{said['seed']}, {spoken_seconds(timings['total'])}"
        )
        hidden = ("total",) if timings["vision"] else ("total", "vision")
        hops = ", ".join(f"{name} {spoken_seconds(took)}" for name, took in timings.items() if name not in hidden)
        self.console.line(f"  {hops}")
