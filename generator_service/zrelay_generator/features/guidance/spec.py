"""What a job asks of classifier-free guidance."""

from dataclasses import dataclass

from zrelay_generator.features.protocol import FeatureSpec, Prompt


@dataclass(frozen=True, slots=True, eq=False)
class GuidanceSpec(FeatureSpec):
    """Classifier-free guidance with the scale, bound and truncation of the job's `SamplingSettings`.

    It adds nothing to the provenance: `sampling` and `negative_prompt` are written for every job.

    Attributes:
        negative_prompt: Embeddings of the negative prompt.
    """

    negative_prompt: Prompt
