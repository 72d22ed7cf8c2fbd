"""What a generation gives back."""

from dataclasses import dataclass, field

from zrelay_client._embeds import Embeds
from zrelay_client._events import Image, JobTimings, Sampling


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of every hop, as the client saw them; those of the generator's stages as it measured them.

    `transfer_s` is what the generator's call took beyond the generator's own total: the wire, both ways. `vision_s` is
    what reference images took beyond the encoding of the prompt.
    """

    connect_s: float
    encode_s: float
    vision_s: float
    queue_s: float
    prepare_s: float
    denoise_s: float
    decode_s: float
    encode_image_s: float
    transfer_s: float
    total_s: float

    @classmethod
    def of(
        cls, job: JobTimings, *, connect_s: float, encode_s: float, vision_s: float, generate_s: float, total_s: float
    ) -> "Timings":
        """Both sides' clocks put together."""
        return cls(
            connect_s=connect_s,
            encode_s=encode_s,
            vision_s=vision_s,
            queue_s=job.queue_s,
            prepare_s=job.prepare_s,
            denoise_s=job.denoise_s,
            decode_s=job.decode_s,
            encode_image_s=job.encode_image_s,
            transfer_s=max(0.0, generate_s - job.total_s),
            total_s=total_s,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """Finished pictures, in order, and all that is known of how they came about."""

    images: tuple[Image, ...]
    request_id: str
    job_id: str
    generator: str
    seed: int
    sampling: Sampling
    encoder_relation: str
    encoder_differences: tuple[str, ...]
    timings: Timings
    embeds: Embeds = field(repr=False)
