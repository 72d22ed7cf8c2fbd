"""One whole picture by the engine in this process: embeddings in, the bytes of a PNG out."""

from typing import Any

import torch
from torch import Tensor

from zrelay_generator.engine.engine import StepEngine, run_to_end
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import EngineEvent, ImagePixels, JobFailed
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.features.protocol import JobSpec, Prompt, SamplingSettings
from zrelay_generator.features.schedule import shifted_schedule
from zrelay_generator.images.writing import ImageFormat, write_image
from zrelay_generator.model.model import LoadedModel, ModelLimits
from zrelay_generator.model.preview import fit_latent_to_rgb
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.vae import Vae
from zrelay_generator.scheduling.shares import ServiceLedger
from zrelay_generator.scheduling.ticks import TickSelector
from zrelay_shared.checkpoints import GenerationDefaults

_TICK_TOKENS = 16384


def loaded(transformer: PackedTransformer, autoencoder: Any) -> LoadedModel:
    """What the engine runs, of weights that are on the device already."""
    vae, weights = Vae(autoencoder), transformer.weights
    limits = ModelLimits(
        text_limit=512,
        embeds_width=weights.width,
        max_side=4096,
        size_multiple=2 * vae.factor,
        layers=len(weights.layers),
    )
    with torch.inference_mode():
        return LoadedModel(transformer, vae, fit_latent_to_rgb(vae), GenerationDefaults(), limits)


def paint(model: LoadedModel, prompt_embeds: Tensor, side: int, steps: int) -> bytes:
    """The file of one picture. Raises what ends the job."""
    files: list[bytes] = []

    def emit(job: DeviceJob, event: EngineEvent) -> None:
        if isinstance(event, JobFailed):
            raise event.error
        if isinstance(event, ImagePixels):
            files.append(write_image(event.pixels, ImageFormat.PNG, 95, "").data)

    sampling = SamplingSettings(side, side, 0.0, 0.0, 1.0, 3.0, shifted_schedule(steps, 3.0), 0, 1)
    estimator = JobEstimator()
    selector = TickSelector(estimator, ServiceLedger())
    engine = StepEngine(model, _TICK_TOKENS, estimator, selector.select, emit, completed=selector.completed)
    engine.add(DeviceJob("picture", JobSpec(Prompt(prompt_embeds), sampling), 0))
    run_to_end(engine)
    engine.close()
    return files[0]
