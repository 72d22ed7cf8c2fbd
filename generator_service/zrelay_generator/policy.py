"""Which work the next tick does. The first form: one request at a time, its images packed within a token budget."""

from collections.abc import Iterable
from dataclasses import dataclass

from zrelay_generator.job import ImageState, Job
from zrelay_generator.rope import TOKEN_MULTIPLE, padded

_PIXELS_PER_TOKEN = 16 * 16


@dataclass(frozen=True, slots=True)
class Steps:
    """One denoising step of these images, packed."""

    images: tuple[ImageState, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """One finished image to pixels."""

    image: ImageState


Work = Steps | Decode


def next_work(jobs: Iterable[Job], tick_tokens: int) -> Work | None:
    """The work of the next tick, None where there is none.

    The job of the highest priority that came first; its finished images are decoded at once, and as many of the
    others as fit into `tick_tokens` (at least one) go through all their steps together. A deterministic job's images
    run singly, so that their company cannot change a rounding.
    """
    job = min(jobs, key=lambda job: (job.spec.priority, job.arrival), default=None)
    if job is None:
        return None
    pending = [image for image in job.images if not image.decoded]
    for image in pending:
        if image.denoised:
            return Decode(image)
    fitting = 1 if job.spec.deterministic else max(1, tick_tokens // image_tokens(job))
    # Images that have begun stand first and share their step, so a group never grows on its way.
    begun = [image for image in pending if image.step > 0]
    return Steps(tuple((begun or pending)[:fitting]))


def image_tokens(job: Job) -> int:
    """Tokens that one image of the job adds to a tick, both branches of guidance counted."""
    sampling, spec = job.spec.sampling, job.spec
    picture = padded(sampling.width * sampling.height // _PIXELS_PER_TOKEN)
    texts = [spec.prompt_embeds] + ([spec.negative_prompt_embeds] if spec.negative_prompt_embeds is not None else [])
    branches = texts if spec.guided else texts[:1]
    return sum(picture + max(TOKEN_MULTIPLE, padded(len(text))) for text in branches)
