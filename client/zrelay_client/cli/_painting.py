"""One generation as the command line does it: files checked first, events shown, pictures written, all of it told."""

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zrelay_client.cli._console import Console, told, told_report
from zrelay_client.cli._interrupts import interruptible
from zrelay_client.cli._previews import Previews
from zrelay_client.cli._targets import Targets
from zrelay_client.client import AsyncClient
from zrelay_client.embeds import Embeds
from zrelay_client.events import Event, Image, Job, Notice, Preview
from zrelay_client.options import GenerateOptions
from zrelay_client.results import Result
from zrelay_client.settings import Settings
from zrelay_shared.errors import ZrelayError

STOPPED = "no picture was written, and nothing goes on at the generator"
ComeBack = Callable[[Job], str]
"""The command that comes back to a job."""


@dataclass(frozen=True, slots=True)
class GenerateCommand:
    """What to paint (a prompt, or a file of embeddings) and where it goes."""

    source: str | Path
    negative_prompt: str | None
    options: GenerateOptions
    targets: Targets
    previews: Previews | None

    def check(self) -> None:
        """Raises OSError where something could not be written, before it is painted."""
        self.targets.check()
        if self.previews is not None:
            self.previews.check()

    def what(self) -> str | Embeds:
        """The prompt, or its embeddings. Raises as Embeds.load."""
        return Embeds.load(self.source) if isinstance(self.source, Path) else self.source


async def paint(
    order: GenerateCommand, settings: Settings, console: Console, come_back: ComeBack | None = None
) -> dict[str, Any]:
    """Paints and writes; what is to be told of it, as JSON's values. Raises ZrelayError and OSError.

    With `come_back` Ctrl-C is ours: see `_interrupts`.
    """
    order.check()
    what, request_id = order.what(), uuid.uuid4().hex

    def show(event: Event) -> None:
        if isinstance(event, Preview) and order.previews is not None:
            order.previews.write(event)
        show_event(console, event)

    console.status("encoding" if isinstance(what, str) else "connecting")
    async with AsyncClient.from_settings(settings) as client:
        work = client.generate(
            what, order.options, negative_prompt=order.negative_prompt, request_id=request_id, on_event=show
        )
        if come_back is None:
            result = await work
        else:
            result = await interruptible(
                work, warn=console.status, leave=leaver(client, come_back, request_id), stopped=STOPPED
            )
    started = time.monotonic()
    paths = order.targets.write(result.images)
    write_s = time.monotonic() - started
    return _told(result, paths, write_s, settings)


def show_event(console: Console, event: Event) -> None:
    """Shows an event in the updating line; what a person should have seen, in a line that stays."""
    if isinstance(event, Notice):
        console.line(f"note: {event.message}")
    elif (text := told(event)) is not None:
        console.status(text, now=False)


def leaver(client: AsyncClient, come_back: ComeBack, *request_ids: str) -> Callable[[], Awaitable[str]]:
    """What lets jobs run on by themselves, and says how to come back; all that are painted where none is named."""

    async def leave() -> str:
        jobs: list[Job] = []
        refusal: ZrelayError | None = None
        for name in request_ids or client.painting():
            try:
                jobs.append(await client.detach(name))
            except ZrelayError as error:  # one that no generator has taken yet: it is cancelled, the others are left
                refusal = error
        if not jobs and refusal is not None:
            raise refusal
        ways = "\n".join(f"  {come_back(job)}" for job in jobs)
        return f"left running; come back with\n{ways}"

    return leave


def file_told(image: Image, path: Path | None) -> dict[str, Any]:
    """A picture as --json tells it: everything but its bytes."""
    values = asdict(replace(image, data=b""))
    return {
        "path": "-" if path is None else str(path),
        **{key: value for key, value in values.items() if key not in ("data", "image_index")},
    }


def _told(result: Result, paths: list[Path], write_s: float, settings: Settings) -> dict[str, Any]:
    places: list[Path | None] = [*paths] if paths else [None] * len(result.images)
    timings = {name.removesuffix("_s"): took for name, took in asdict(result.timings).items()}
    total = timings.pop("total") + write_s
    return {
        "files": [file_told(image, path) for image, path in zip(result.images, places, strict=True)],
        "seed": result.seed,
        "request_id": result.request_id,
        "job_id": result.job_id,
        "generator": result.generator,
        "sampling": asdict(result.sampling),
        "encoder": {
            "relation": result.encoder_relation,
            "differences": list(result.encoder_differences),
            "model_id": result.embeds.fingerprint.model_id,
            "fingerprint": result.embeds.fingerprint.digest,
        },
        "prompt_report": asdict(result.embeds.report),
        "endpoints": settings.texts,
        "warnings": warnings_of(result),
        "timings_s": {name: round(took, 6) for name, took in {**timings, "write": write_s, "total": total}.items()},
    }


def lost(embeds: Embeds) -> list[str]:
    """What prompt and negative prompt lost to the limit."""
    said = (told_report("prompt", embeds.report), told_report("negative prompt", embeds.negative_report))
    return [line for line in said if line is not None]


def warnings_of(result: Result) -> list[str]:
    """What a person should know although the picture is there."""
    lines = lost(result.embeds)
    if result.embeds.negative_report is not None and not result.sampling.guidance_scale:
        lines.append("the negative prompt had no effect: guidance_scale is 0")
    made = result.embeds.fingerprint.modifications
    if made[:1] == ("conditioning",) and len(result.encoder_differences) == 1:
        lines.append(f"the prompt was blended with a reference, which is experimental: {', '.join(made[1:])}")
    elif result.encoder_relation in ("experimental", "unverified"):
        differences = f" ({'; '.join(result.encoder_differences)})" if result.encoder_differences else ""
        lines.append(f"the encoder's relation to this generator is {result.encoder_relation}{differences}")
    return lines
