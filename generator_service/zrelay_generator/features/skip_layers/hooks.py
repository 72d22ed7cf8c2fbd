"""Skip-layer guidance: the prediction is pushed away from the one without some main blocks."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zrelay_generator.cost.model import Size
from zrelay_generator.features.protocol import PROMPT, JobFeature, JobSpec, Prompt, SequenceSize, Step
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.transformer import Prediction, Segment


def skip_layer_hooks(spec: SkipLayerSpec, job: JobSpec) -> "SkipLayerGuidance | None":
    """Makes the hooks of a job, None if the scale is 0."""
    return SkipLayerGuidance(spec, job.prompt) if spec.scale != 0.0 else None


class SkipLayerGuidance(JobFeature):
    """Adds `scale * (positive - positive without blocks)` to the prediction in the steps of its window.

    The prediction without blocks shares everything up to the first skipped block with the full one.
    """

    def __init__(self, spec: SkipLayerSpec, prompt: Prompt) -> None:
        self._spec, self._prompt = spec, prompt

    def size(self, step: Step, layers: int, sequence_size: SequenceSize) -> Size:
        if not self._acts(step):
            return Size()
        first, skipped = min(self._spec.layers), len(self._spec.layers)
        return sequence_size(self._prompt) * (max(0, layers - first - skipped) / layers)

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        if not self._acts(step):
            return segments
        return segments | {PROMPT: replace(segments[PROMPT], without=(self._spec.layers,))}

    def adjust_prediction(self, step: Step, prediction: Tensor, predictions: Mapping[str, Prediction]) -> Tensor:
        positive = predictions[PROMPT]
        if not positive.without:
            return prediction
        return torch.add(prediction, positive.full - positive.without[0], alpha=self._spec.scale)

    def _acts(self, step: Step) -> bool:
        return self._spec.start <= step.progress < self._spec.stop
