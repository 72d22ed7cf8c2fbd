"""Results of generations."""

from dataclasses import dataclass, field

from zrelay_client.embeds import Embeds
from zrelay_client.events import Image, JobTimings, Sampling
from zrelay_shared.errors import ZrelayError


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of every hop as the client measured them, and of the generator's stages as the generator measured them.

    Attributes:
        connect_s: Until every service had answered.
        encode_s: The call to the encoder.
        vision_s: What reference images took beyond the call to the encoder.
        transfer_s: What the call to the generator took beyond the generator's own total: the network, both ways.
        total_s: The call of the client.
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
        """Joins the generator's timings with those of the client; `generate_s` is the call to the generator."""
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
    """Finished images, in order, and how they were made.

    Attributes:
        generator: Address of the generator.
        seed: Seed of the first image.
        sampling: The settings that the generator used.
        encoder_relation, encoder_differences: As in Accepted.
        embeds: The embeddings, to generate again without the encoder.
    """

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one job of `generate_many`: its `result`, or the `error` that ended it.

    Attributes:
        index: Place of the job in the batch: every seed of the first prompt, then of the second, and so on.
        prompt_index: Place of its prompt.
    """

    index: int
    prompt_index: int
    seed: int | None
    request_id: str
    result: Result | None = field(repr=False)
    error: ZrelayError | None
