"""Measures the device at start: generates a small image, then times forwards and decodes of a few sizes."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from zrelay_generator.cost.cache import CostCache
from zrelay_generator.cost.model import CostModel, MemoryModel
from zrelay_generator.engine.engine import StepEngine, run_to_end
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import EngineEvent, JobFailed
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.engine.ticks import DecodeTick, DenoiseTick, Tick
from zrelay_generator.features.protocol import JobSpec, Prompt, SamplingSettings
from zrelay_generator.features.schedule import shifted_schedule
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.sequence import segment_size
from zrelay_generator.model.transformer import Segment
from zrelay_generator.model.weights import TransformerWeights
from zrelay_shared.service.memory_plan import transformer_bytes_per_token

log = logging.getLogger(__name__)
_BUDGET_S = 10.0
"""Measuring ends after this; the work that is served refines the estimates."""
_KEPT_FROM_S = 4.0
"""A small image that takes longer is generated at the first start alone; later starts use its times."""
_ROUNDS = 3
_SIDE = 512
_BATCHES = (1, 4)
"""Segments of the smallest size in one forward: measures what packing saves."""
_GROWTH = (2, 4)
"""Sides of single images as multiples of the smallest: measures what tokens and attention cost."""

_OWN_SHARE = 0.7
"""Processor time over elapsed time from which on a CPU counts as this process's own."""


def warm_up_side(device: str, min_side: int, default_width: int) -> int:
    """Returns the side in pixels of the smallest image that is measured.

    On a CPU this is the smallest image, since its time grows with its pixels. On a GPU a small image takes only the
    time of its kernel launches, so up to 512 pixels of the checkpoint's default width.
    """
    return min_side if device == "cpu" else max(min_side, min(_SIDE, default_width))


def calibrate(
    model: LoadedModel,
    cost: CostModel,
    side: int,
    cache: CostCache | None = None,
    budget_s: float = _BUDGET_S,
    kept_from_s: float = _KEPT_FROM_S,
    own_share: float = _OWN_SHARE,
) -> None:
    """Fills a cost model with measurements.

    Where the small image alone takes longer than the budget, its times are the measurements: on a slow machine, each
    further forward would delay the start by many seconds. Where it takes longer than `kept_from_s`, the measurements go
    into the cache, and later starts measure nothing.

    Args:
        model: The loaded model.
        cost: The cost model; earlier measurements are dropped.
        side: Side of the smallest image in pixels; multiples of it are measured too.
        cache: Measurements of earlier starts on a CPU; None measures always, as a GPU needs to warm up its kernels.
        budget_s: Seconds after which nothing more is measured.
        kept_from_s: Seconds of the small image from which on the measurements are kept.
        own_share: Processor time over elapsed time below which they are not kept.

    Raises:
        ZrelayError: The model cannot generate a small image; it must not be served.
    """
    multiple = model.limits.size_multiple
    side = -(-side // multiple) * multiple
    cost.memory = memory_model(model)
    cost.reset()
    if cache is not None and cache.restore(cost):
        log.info("the estimates of times are those of an earlier start")
        return
    started, used = time.monotonic(), time.process_time()
    _generate(model, side, cost)
    image_s, used_s = time.monotonic() - started, time.process_time() - used
    if image_s <= budget_s:
        cost.reset()
        _measure_sizes(model, side, cost, started + budget_s)
    # Times that were long because other processes used the CPU would refuse jobs for lack of time at every later start.
    if cache is not None and image_s > kept_from_s and used_s >= own_share * image_s:
        cache.keep(cost)


def _measure_sizes(model: LoadedModel, side: int, cost: CostModel, deadline: float) -> None:
    """Times forwards and decodes of a few sizes until the deadline."""
    device = model.transformer.weights.device
    shapes = [(side, count) for count in _BATCHES]
    shapes += [(side * times, 1) for times in _GROWTH if side * times <= min(model.limits.max_side, 2048)]
    with torch.inference_mode():
        for pixels, count in shapes:
            size = segment_size(pixels, pixels, 1) * count
            seconds = _least(partial(model.transformer.forward, _segments(model, pixels, count)), device, deadline)
            cost.observe_forward(size, seconds)
            if count == 1:
                latents = torch.zeros(_shape(model, pixels), device=device)
                cost.observe_decode(pixels * pixels, _least(partial(model.vae.decode, latents), device, deadline))
            if time.monotonic() > deadline:
                return


def memory_model(model: LoadedModel) -> MemoryModel:
    """Returns the bytes per token and per pixel, from the tensors that exist at the same time in one block."""
    return MemoryModel(model.transformer.layers, _bytes_per_token(model.transformer.weights), model.vae.bytes_per_pixel)


def _bytes_per_token(weights: TransformerWeights) -> int:
    block = weights.layers[0]
    dim, hidden, itemsize = block.out.shape[0], block.gate.shape[0], weights.dtype.itemsize
    return transformer_bytes_per_token(dim, hidden, itemsize)


def _generate(model: LoadedModel, side: int, cost: CostModel) -> None:
    """Generates an image in one step; its times go into the cost model."""

    def emit(job: DeviceJob, event: EngineEvent) -> None:
        if isinstance(event, JobFailed):
            raise event.error

    sampling = SamplingSettings(side, side, 0.0, 0.0, 1.0, 1.0, shifted_schedule(1, 1.0), 0, 1)
    engine = StepEngine(model, 1, JobEstimator(cost), _only_image, emit, decode_beside=False)
    engine.add(DeviceJob("warm-up", JobSpec(Prompt(torch.zeros(1, model.limits.embeds_width)), sampling), 0))
    run_to_end(engine)


def _only_image(jobs: Sequence[DeviceJob], tick_tokens: int) -> Tick | None:
    image = jobs[0].images[0]
    return DecodeTick(image) if image.denoised else DenoiseTick((image,))


def _segments(model: LoadedModel, side: int, count: int) -> list[Segment]:
    transformer = model.transformer
    shape = _shape(model, side)
    context = transformer.context(torch.zeros(1, model.limits.embeds_width))
    conditioning = transformer.conditioning(context, *shape[1:])
    latents = torch.zeros(shape, device=transformer.weights.device)
    return [Segment(latents, conditioning, transformer.modulation(0.0)) for _ in range(count)]


def _shape(model: LoadedModel, side: int) -> tuple[int, int, int]:
    return model.transformer.weights.channels, side // model.vae.factor, side // model.vae.factor


def _least(work: Callable[[], Sequence[object] | torch.Tensor], device: torch.device, deadline: float) -> float:
    """Returns the shortest time of a few rounds in seconds; the first round may be slow.

    On a CPU that other processes use, a round counts the processor time that it got, not the elapsed time. Otherwise
    work would be refused for lack of time and never be measured again.
    """
    least = float("inf")
    for _ in range(_ROUNDS):
        started, given = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        least = min(least, seconds, time.process_time() - given if device.type == "cpu" else seconds)
        if time.monotonic() > deadline:
            break
    return max(least, 1e-6)
