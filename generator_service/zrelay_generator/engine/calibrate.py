"""At start: paint something small, then measure how long forwards and decodes of a few sizes take."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from zrelay_generator.cost.model import MemoryModel, Speed
from zrelay_generator.engine.engine import Engine, run_to_end
from zrelay_generator.engine.events import EngineEvent, Failed
from zrelay_generator.engine.job import Job
from zrelay_generator.features.protocol import JobSpec, Prompt, Sampling
from zrelay_generator.features.schedule import shifted_schedule
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.size import segment_size
from zrelay_generator.model.transformer import Segment
from zrelay_generator.model.weights import TransformerWeights

_BUDGET_S = 10.0
"""Measuring ends after this; what is served refines it."""
_ROUNDS = 3
_SIDE = 512
_COMPANY = (1, 4)
"""Segments of the smallest size in one forward: what packing saves."""
_GROWTH = (2, 4)
"""Sides of single images, as multiples of the smallest: what tokens and attention cost."""


def warm_up_side(device: str, min_side: int, default_width: int) -> int:
    """Pixels of the smallest measured picture's side. On a CPU the least: time is in its pixels. On a GPU
    small pictures take the time of their launches alone, and tell little; so up to 512, as the checkpoint paints."""
    return min_side if device == "cpu" else max(min_side, min(_SIDE, default_width))


def calibrate(model: LoadedModel, speed: Speed, side: int) -> None:
    """For pictures of `side` pixels and multiples of it.

    Raises what ends the first small picture: a model that cannot paint it is not served.
    """
    multiple = model.limits.size_multiple
    side = -(-side // multiple) * multiple
    speed.memory = memory_model(model)
    _paint(model, side)
    speed.forget()
    device, deadline = model.transformer.weights.device, time.monotonic() + _BUDGET_S
    shapes = [(side, count) for count in _COMPANY]
    shapes += [(side * times, 1) for times in _GROWTH if side * times <= min(model.limits.max_side, 2048)]
    with torch.inference_mode():
        for pixels, count in shapes:
            size = segment_size(pixels, pixels, 1) * count
            seconds = _least(partial(model.transformer.forward, _segments(model, pixels, count)), device, deadline)
            speed.saw_forward(size.tokens, seconds, size.squares)
            if count == 1:
                latents = torch.zeros(_shape(model, pixels), device=device)
                speed.saw_decode(pixels * pixels, _least(partial(model.vae.decode, latents), device, deadline))
            if time.monotonic() > deadline:
                return


def memory_model(model: LoadedModel) -> MemoryModel:
    """From the shapes of the weights: the tensors of one block that live at the same time."""
    return MemoryModel(model.transformer.layers, _bytes_per_token(model.transformer.weights), model.vae.bytes_per_pixel)


def _bytes_per_token(weights: TransformerWeights) -> int:
    block = weights.layers[0]
    dim, hidden, itemsize = block.out.shape[0], block.gate.shape[0], weights.dtype.itemsize
    # Residual, normed, query, key, value, attended; four norms where timesteps differ; float32 halves of the rotation.
    attention = 10 * dim * itemsize + 8 * dim
    return int(max(attention, (6 * dim + 3 * hidden) * itemsize))


def _paint(model: LoadedModel, side: int) -> None:
    def emit(job: Job, event: EngineEvent) -> None:
        if isinstance(event, Failed):
            raise event.error

    sampling = Sampling(side, side, 0.0, 0.0, 1.0, 1.0, shifted_schedule(2, 1.0), 0, 1)
    engine = Engine(model, 1, Speed(), emit, decode_beside=False)
    engine.add(Job("warm-up", JobSpec(Prompt(torch.zeros(1, model.limits.embeds_width)), sampling), 0))
    run_to_end(engine)


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
    """The least seconds of a few rounds, the first of which may be slow.

    On a CPU that others keep busy a round counts the time that it was given, not the time that passed: else what is
    refused for lack of time would never be measured again.
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
