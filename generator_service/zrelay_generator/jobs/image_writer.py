"""The thread that turns pixels into files, beside the next step on the device."""

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from zrelay_generator.engine.events import ImagePixels, JobFailed, JobStage, PreviewPixels, StageProgress
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.engine.refusals import device_failure
from zrelay_generator.features.expected_encoder import ExpectedEncoder, compare_encoder
from zrelay_generator.features.provenance import LoadedIdentity, provenance_json
from zrelay_generator.images.writing import pixels_sha256, write_image, write_preview
from zrelay_generator.jobs.events import ImageFinished, JobEvent, JobSucceeded, PreviewReady
from zrelay_shared.fingerprint import EncoderFingerprint

log = logging.getLogger(__name__)
Publish = Callable[[DeviceJob, JobEvent], None]


class ImageWriter:
    """Writes previews and images in the order in which they arrive, and publishes them from its thread."""

    def __init__(self, loaded: LoadedIdentity, expected: ExpectedEncoder, publish: Publish) -> None:
        """Starts the thread.

        Args:
            loaded: What generates the images, for their provenance.
            expected: The encoder of the checkpoint. Until it is known, pixels wait in memory.
            publish: Receives the events; called from the writer's thread.
        """
        self._loaded, self._expected = loaded, expected
        self._publish = publish
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image-writer")

    def put(self, job: DeviceJob, event: PreviewPixels | ImagePixels) -> None:
        """Queues pixels; never waits."""
        self._thread.submit(self._write, job, event)

    def close(self) -> None:
        """Ends the thread after the file under way."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _write(self, job: DeviceJob, event: PreviewPixels | ImagePixels) -> None:
        expected = self._expected.wait()
        if job.cancelled or expected is None:
            return
        try:
            if isinstance(event, PreviewPixels):
                self._publish(job, PreviewReady(event.image_index, event.step, write_preview(event.pixels)))
            else:
                self._finish(job, event, expected)
        except Exception:  # the thread must live on for the other jobs, and this job must end
            incident = uuid.uuid4().hex[:12]
            log.exception("incident %s: an image could not be written", incident)
            self._publish(job, JobFailed(device_failure(incident)))
            job.cancelled = True  # the device need not generate the rest; set last, because this is no cancellation

    def _finish(self, job: DeviceJob, event: ImagePixels, expected: EncoderFingerprint) -> None:
        started = time.perf_counter()
        spec, output = job.spec, job.spec.output
        digest = pixels_sha256(event.pixels)
        text = ""
        if not output.omit_provenance:
            relation = compare_encoder(expected, spec.origin.encoder)
            text = provenance_json(spec, self._loaded, relation, event.image_index, event.seed, digest)
        file = write_image(event.pixels, output.format, output.quality, text)
        seconds = time.perf_counter() - started
        job.timings.encode_image_s += seconds
        height, width, _ = event.pixels.shape
        job.written += 1
        images = spec.sampling.num_images
        self._publish(job, StageProgress(JobStage.ENCODE_IMAGE, job.written, images, seconds, event.eta_s))
        self._publish(
            job,
            ImageFinished(event.image_index, event.seed, width, height, output.format, file.data, file.sha256, digest),
        )
        if event.last:
            job.timings.total_s = time.monotonic() - job.accepted_at
            self._publish(job, JobSucceeded(images, job.timings))
