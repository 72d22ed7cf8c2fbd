"""Skip-layer guidance: push away from what the model predicts without some of its blocks."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zrelay_generator.features.hooks import PROMPT, Feature, Step
from zrelay_generator.features.omni.size import prompt_size
from zrelay_generator.features.protocol import JobSpec, SkipLayers
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.size import Size
from zrelay_generator.model.transformer import Prediction, Segment


class SkipLayerGuidance(Feature):
    """prediction + s (pos - skip) in the steps of its window, whatever guidance made of the prediction before.

    The prediction without blocks shares everything up to the first of them with the one that has them all.
    """

    def __init__(self, asked: SkipLayers, size: Size) -> None:
        self._asked, self._size = asked, size

    @classmethod
    def of(cls, spec: JobSpec) -> "SkipLayerGuidance | None":
        if spec.skip_layers is None or spec.skip_layers.scale == 0.0:
            return None
        return cls(spec.skip_layers, prompt_size(spec))

    def size(self, step: Step, layers: int) -> Size:
        if not self._acts(step):
            return Size()
        first, skipped = min(self._asked.layers), len(self._asked.layers)
        return self._size * (max(0, layers - first - skipped) / layers)

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        if not self._acts(step):
            return segments
        return segments | {PROMPT: replace(segments[PROMPT], without=(self._asked.layers,))}

    def bend(self, step: Step, prediction: Tensor, predictions: Mapping[str, Prediction]) -> Tensor:
        positive = predictions[PROMPT]
        if not positive.without:
            return prediction
        return torch.add(prediction, positive.full - positive.without[0], alpha=self._asked.scale)

    def _acts(self, step: Step) -> bool:
        return self._asked.start <= step.progress < self._asked.stop
