"""The thread that turns pixels into files, beside the next step on the device."""

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from zrelay_generator.engine.events import (
    Done,
    Event,
    Failed,
    Image,
    ImagePixels,
    Preview,
    PreviewPixels,
    Progress,
    Stage,
)
from zrelay_generator.engine.job import Job
from zrelay_generator.engine.refusals import device_failure
from zrelay_generator.features.provenance import LoadedIdentity, provenance_json
from zrelay_generator.images.writing import pixels_sha256, write_image, write_preview

log = logging.getLogger(__name__)
Publish = Callable[[Job, Event], None]


class Writer:
    """Writes previews and images in the order in which they come, and publishes what it wrote.

    `publish` is called from the writer's thread.
    """

    def __init__(self, loaded: LoadedIdentity, publish: Publish) -> None:
        self._loaded = loaded
        self._publish = publish
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image-writer")

    def put(self, job: Job, event: PreviewPixels | ImagePixels) -> None:
        """Takes pixels over; never waits."""
        self._thread.submit(self._write, job, event)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _write(self, job: Job, event: PreviewPixels | ImagePixels) -> None:
        if job.cancelled:
            return
        try:
            if isinstance(event, PreviewPixels):
                self._publish(job, Preview(event.image_index, event.step, write_preview(event.pixels)))
            else:
                self._finish(job, event)
        except Exception:  # the thread must live on for the other jobs, and this job must end
            incident = uuid.uuid4().hex[:12]
            log.exception("incident %s: an image could not be written", incident)
            self._publish(job, Failed(device_failure(incident)))
            job.cancelled = True  # the device need not paint the rest of it; told first, for it is no cancelling

    def _finish(self, job: Job, event: ImagePixels) -> None:
        started = time.perf_counter()
        spec, output = job.spec, job.spec.output
        digest = pixels_sha256(event.pixels)
        text = ""
        if not output.omit_provenance:
            text = provenance_json(spec, self._loaded, event.image_index, event.seed, digest)
        file = write_image(event.pixels, output.format, output.quality, text)
        seconds = time.perf_counter() - started
        job.timings.encode_image_s += seconds
        height, width, _ = event.pixels.shape
        job.written += 1
        self._publish(job, Progress(Stage.ENCODE_IMAGE, job.written, spec.sampling.num_images, seconds, event.eta_s))
        self._publish(
            job,
            Image(event.image_index, event.seed, width, height, output.format, file.data, file.sha256, digest),
        )
        if event.last:
            job.timings.total_s = time.monotonic() - job.accepted_at
            self._publish(job, Done(spec.sampling.num_images, job.timings))
