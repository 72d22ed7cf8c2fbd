"""Orders made of what a caller asked for, and results made of a job's events."""

import contextlib
import hashlib
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from zrelay_client._budget import Budget
from zrelay_client._embeds import Embeds
from zrelay_client._events import Accepted, Done, Event, Image, Sampling
from zrelay_client._options import GenerateOptions
from zrelay_client._requests import guided
from zrelay_client._results import Result, Timings
from zrelay_client._run import JobRequest, JobRun
from zrelay_shared.errors import InternalError

_MOST_WHOLE = 16 * 1024 * 1024
"""Bytes of reference images that travel within a request; more are uploaded one by one, since a message has a bound."""


def order(
    embeds: Embeds,
    options: GenerateOptions,
    request_id: str | None,
    defaults: Sampling,
    *,
    named: bool = False,
    patient: bool = False,
) -> JobRequest:
    """A job with its name and seed settled, so that it is the same picture wherever and however often it is begun.

    A seed that was not asked for comes of the request_id: a repeat under the same one is the same request.
    """
    name = request_id or uuid.uuid4().hex
    chosen = options.copy()
    if chosen.get("seed") is None:
        chosen["seed"] = int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:4], "big")
    large = embeds.omni is not None and embeds.omni.size_bytes > _MOST_WHOLE
    return JobRequest(embeds, chosen, name, _work(options, defaults), named=named or large, patient=patient)


@dataclass(frozen=True, slots=True)
class Hops:
    """What was done before the generator: seconds until every service was reached, the encoder's, and what reference
    images took beyond that."""

    connect_s: float = 0.0
    encode_s: float = 0.0
    vision_s: float = 0.0


async def collect(
    run: JobRun, embeds: Embeds, on_event: Callable[[Event], None] | None, hops: Hops, budget: Budget
) -> Result:
    """A job's events put together, each told as it comes."""
    accepted, images, sent = None, [], budget.spent
    async with contextlib.aclosing(run.events()) as events:
        async for event in events:
            if on_event is not None:
                on_event(event)
            if isinstance(event, Accepted):
                accepted = event
            elif isinstance(event, Image):
                images.append(event)
            elif isinstance(event, Done) and accepted is not None:
                now = budget.spent
                timings = Timings.of(
                    event.timings,
                    connect_s=hops.connect_s,
                    encode_s=hops.encode_s,
                    vision_s=hops.vision_s,
                    generate_s=now - sent,
                    total_s=now,
                )
                return _result(accepted, images, timings, embeds, run.endpoint)
    raise InternalError("the generator ended its stream without saying that the job was accepted and done")


def _result(accepted: Accepted, images: list[Image], timings: Timings, embeds: Embeds, generator: str) -> Result:
    return Result(
        images=tuple(sorted(images, key=lambda image: image.image_index)),
        request_id=accepted.request_id,
        job_id=accepted.job_id,
        generator=generator,
        seed=accepted.seed,
        sampling=accepted.sampling,
        encoder_relation=accepted.encoder_relation,
        encoder_differences=accepted.encoder_differences,
        timings=timings,
        embeds=embeds,
    )


def _work(options: GenerateOptions, defaults: Sampling) -> float:
    """Pixels times forwards: what generators are compared by. Nonsense is theirs to refuse."""
    width, height = options.get("width") or defaults.width, options.get("height") or defaults.height
    steps = len(options.get("sigmas") or ()) or options.get("num_inference_steps") or defaults.num_inference_steps
    images = options.get("num_images") or 1
    try:
        work = float(width) * float(height) * float(steps) * float(images) * (2.0 if guided(options, defaults) else 1.0)
    except (TypeError, ValueError, OverflowError):
        return 1.0
    return work if 0 < work < math.inf else 1.0
