"""One generation as the command line does it: files checked first, events shown, pictures written, all of it told."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zrelay_client._async_client import AsyncClient
from zrelay_client._budget import DEFAULT_S
from zrelay_client._embeds import Embeds
from zrelay_client._events import Event, Preview
from zrelay_client._options import GenerateOptions
from zrelay_client._results import Result
from zrelay_client.cli._console import Console, told, told_report
from zrelay_client.cli._previews import Previews
from zrelay_client.cli._targets import Targets


@dataclass(frozen=True, slots=True)
class Order:
    """What to paint (a prompt, or a file of embeddings) and where it goes."""

    source: str | Path
    negative_prompt: str | None
    options: GenerateOptions
    targets: Targets
    previews: Previews | None
    timeout_s: float | None


async def paint(order: Order, endpoints: Mapping[str, str], console: Console) -> dict[str, Any]:
    """Paints and writes; what is to be told of it, as JSON's values. Raises ZrelayError and OSError."""
    order.targets.check()
    if order.previews is not None:
        order.previews.check()
    what = Embeds.load(order.source) if isinstance(order.source, Path) else order.source

    def show(event: Event) -> None:
        if isinstance(event, Preview) and order.previews is not None:
            order.previews.write(event)
        if (text := told(event)) is not None:
            console.status(text, now=False)

    console.status("encoding" if isinstance(what, str) else "connecting")
    timeout_s = DEFAULT_S if order.timeout_s is None else order.timeout_s
    async with AsyncClient(
        encoder=endpoints.get("encoder"), generator=endpoints["generator"], timeout_s=timeout_s
    ) as client:
        result = await client.generate(what, negative_prompt=order.negative_prompt, on_event=show, **order.options)
    started = time.monotonic()
    paths = order.targets.write(result.images)
    write_s = time.monotonic() - started
    return _told(result, paths, write_s, endpoints)


def _told(result: Result, paths: list[Path], write_s: float, endpoints: Mapping[str, str]) -> dict[str, Any]:
    files = []
    for index, image in enumerate(result.images):
        said = {
            key: value for key, value in asdict(replace(image, data=b"")).items() if key not in ("data", "image_index")
        }
        files.append({"path": str(paths[index]) if paths else "-", **said})
    timings = {name.removesuffix("_s"): took for name, took in asdict(result.timings).items()}
    total = timings.pop("total") + write_s
    return {
        "files": files,
        "seed": result.seed,
        "request_id": result.request_id,
        "job_id": result.job_id,
        "sampling": asdict(result.sampling),
        "encoder": {
            "relation": result.encoder_relation,
            "differences": list(result.encoder_differences),
            "model_id": result.embeds.fingerprint.model_id,
            "fingerprint": result.embeds.fingerprint.digest,
        },
        "prompt_report": asdict(result.embeds.report),
        "endpoints": dict(endpoints),
        "warnings": _warnings(result),
        "timings_s": {name: round(took, 6) for name, took in {**timings, "write": write_s, "total": total}.items()},
    }


def lost(embeds: Embeds) -> list[str]:
    """What prompt and negative prompt lost to the limit."""
    said = (told_report("prompt", embeds.report), told_report("negative prompt", embeds.negative_report))
    return [line for line in said if line is not None]


def _warnings(result: Result) -> list[str]:
    """What a person should know although the picture is there."""
    lines = lost(result.embeds)
    if result.embeds.negative_report is not None and not result.sampling.guidance_scale:
        lines.append("the negative prompt had no effect: guidance_scale is 0")
    if result.encoder_relation in ("experimental", "unverified"):
        differences = f" ({'; '.join(result.encoder_differences)})" if result.encoder_differences else ""
        lines.append(f"the encoder's relation to this generator is {result.encoder_relation}{differences}")
    return lines
