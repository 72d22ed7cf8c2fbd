"""Parses a GenerationSpec into a JobSpec, and reads requests and stored jobs with it."""

import asyncio
import json
import math
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache, partial
from typing import Any

from zrelay.v1 import generation_pb2 as pb
from zrelay_generator.api.contents import NamedSpec, has_pictures, named, whole
from zrelay_generator.api.expansion import MAX_EXPANDED_BYTES, ExpansionBudget
from zrelay_generator.api.replies import sampling_message
from zrelay_generator.features.acceptance import Acceptance, SamplingLimits
from zrelay_generator.features.protocol import JobSpec, Origin, Output, Priority, SamplingSettings
from zrelay_generator.features.registry import FEATURES, UNBUILT
from zrelay_generator.features.request import SpecRequest, missing
from zrelay_generator.features.schedule import Schedule, explicit_schedule, shifted_schedule
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.intake import Submission, content_unknown
from zrelay_generator.store.blobs import ContentDamaged, ContentMissing
from zrelay_generator.store.protocol import JobStore
from zrelay_generator.store.records import JobRecord, damaged
from zrelay_shared.callers import Caller
from zrelay_shared.errors import InvalidArgument, invalid, invalid_from
from zrelay_shared.fingerprint import from_message
from zrelay_shared.limits import MAX_REQUEST_ID_CHARS, MAX_SEED
from zrelay_shared.service.decoding import DecodePool, Decoding, run_decoding, start_in_thread
from zrelay_shared.service.parsing import enum_choice
from zrelay_shared.wire import Parcel

_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_REQUEST_ID_CHARS}}}")
_FORMATS: dict[int, ImageFormat] = {
    pb.IMAGE_FORMAT_PNG: ImageFormat.PNG,
    pb.IMAGE_FORMAT_JPEG: ImageFormat.JPEG,
    pb.IMAGE_FORMAT_WEBP: ImageFormat.WEBP,
}
_PRIORITIES: dict[int, Priority] = {
    pb.JOB_PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.JOB_PRIORITY_NORMAL: Priority.NORMAL,
    pb.JOB_PRIORITY_BATCH: Priority.BATCH,
}
_MAX_GUIDANCE = 100.0
_MIN_SHIFT = 0.001
"""Far below it the formula of the shift divides by zero."""
_MAX_SHIFT = 1000.0
_MAX_PREVIEW_SIDE = 1024
_MAX_LABELS, _MAX_LABEL_CHARS = 32, 1024
_MAX_TEXT_BYTES = {ImageFormat.PNG: 1 << 20, ImageFormat.WEBP: 48_000, ImageFormat.JPEG: 48_000}
"""Limit of prompts and labels as ASCII JSON. EXIF is one segment of 64 KiB in a JPEG and holds the rest as well."""


def parse_request_id(text: str) -> str:
    """Returns the client's request id, or a new one if it sent none.

    Raises:
        InvalidArgument: REQUEST_ID_INVALID.
    """
    if not text:
        return secrets.token_hex(16)
    return check_id("request_id", text)


def check_id(name: str, text: str) -> str:
    """Returns an id of a request or a job.

    Args:
        name: `request_id` or `job_id`.
        text: The id.

    Raises:
        InvalidArgument: It is empty (REQUEST_ID_MISSING, JOB_ID_MISSING), too long or has other characters than those
            of ids (REQUEST_ID_INVALID, JOB_ID_INVALID).
    """
    if not text:
        raise invalid(name, "one", "none", reason=f"{name.upper()}_MISSING")
    if not _ID.fullmatch(text):
        raise invalid(name, f"at most {MAX_REQUEST_ID_CHARS} characters of A-Z a-z 0-9 . _ -", repr(text[:80]))
    return text


def parse_spec(
    parcel: Parcel[Any], spec: pb.GenerationSpec, accepts: Acceptance, decoding: Decoding | None = None
) -> JobSpec:
    """Parses and validates a GenerationSpec.

    Args:
        parcel: The message that contains `spec`, with its tensor bytes.
        spec: The spec, with every content by value.
        accepts: Limits and defaults.
        decoding: The decoding of the caller's pictures; None for one without other callers.

    Raises:
        Cancelled: The caller has left.
        FeatureMissing: The spec uses a capability that this generator does not have; this is checked first.
        InvalidArgument: A field is invalid.
        EncoderMismatch: The encoder does not belong to the checkpoint.
        PayloadCorrupt: A checksum does not match.
    """
    check_counts(spec, accepts)
    sampling, output = parse_sampling(spec.sampling, accepts.sampling), _output(spec)
    priority = enum_choice(spec.priority, pb.JobPriority, _PRIORITIES, "spec.priority", reason="ENUM_UNKNOWN")
    request = SpecRequest(parcel, spec, sampling, accepts, decoding or Decoding())
    for feature in FEATURES:
        feature.check(request)
    prompt, origin = request.prompt("prompt"), _origin(request, output.format)
    parsed = [feature.parse(request) for feature in FEATURES]
    features = tuple(part for part in parsed if part is not None)
    for part in features:
        sampling = part.applied_to(sampling)
    return JobSpec(
        prompt=prompt,
        sampling=sampling,
        output=output,
        origin=origin,
        priority=Priority.NORMAL if priority is None else priority,
        deterministic=spec.deterministic or accepts.deterministic,
        features=features,
    )


def check_counts(spec: pb.GenerationSpec, accepts: Acceptance) -> None:
    """Refuses what a spec requests that this generator does not have, and too many of what it has.

    Needs no content: it is called before contents by name are read.

    Raises:
        FeatureMissing: The spec uses a capability that this generator does not have.
        InvalidArgument: Too many of something.
    """
    present = {field.name for field, _ in spec.ListFields()}
    for name, capability in UNBUILT.items():
        if name in present:
            raise missing(capability, f"spec.{name}")
    for feature in FEATURES:
        feature.check_counts(spec, accepts)


def parse_sampling(message: pb.SamplingOptions, limits: SamplingLimits) -> SamplingSettings:
    """Parses SamplingOptions and fills in the defaults.

    Raises:
        InvalidArgument: A field is invalid.
    """
    defaults = limits.defaults
    width = message.width if message.HasField("width") else defaults.width
    height = message.height if message.HasField("height") else defaults.height
    _check_sides(width, height, limits)
    if width * height > limits.max_pixels:
        expected = f"width * height of at most {limits.max_pixels}"
        raise invalid("spec.sampling.width", expected, f"{width} x {height}", reason="SIZE_INVALID")
    schedule, shift = _schedule(message, limits)
    num_images = message.num_images if message.HasField("num_images") else 1
    if not 1 <= num_images <= limits.max_images:
        raise invalid("spec.sampling.num_images", f"1 to {limits.max_images}", num_images)
    if message.seed + num_images - 1 > MAX_SEED:
        expected = f"at most {MAX_SEED - num_images + 1} for {num_images} images, of which image i has seed + i"
        raise invalid("spec.sampling.seed", expected, message.seed)
    guidance = message.guidance_scale if message.HasField("guidance_scale") else defaults.guidance_scale
    truncation = message.cfg_truncation if message.HasField("cfg_truncation") else 1.0
    return SamplingSettings(
        width=width,
        height=height,
        guidance_scale=_number("guidance_scale", guidance, _MAX_GUIDANCE),
        cfg_normalization=_number("cfg_normalization", message.cfg_normalization, math.inf),
        cfg_truncation=_number("cfg_truncation", truncation, math.inf),
        shift=shift,
        schedule=schedule,
        # 32 bits, so that a person can copy it.
        seed=message.seed if message.HasField("seed") else secrets.randbelow(1 << 32),
        num_images=num_images,
    )


class RequestReader:
    """Makes jobs from requests and from stored specs. Contents by name come from the store."""

    def __init__(
        self,
        accepts: Acceptance,
        store: JobStore,
        check_fits: Callable[[JobSpec], None],
        pictures: DecodePool | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """Creates a reader.

        Args:
            accepts: Limits and defaults of requests.
            store: Holds contents and stored specs.
            check_fits: Raises OutOfMemory for a job that needs more memory than the device has.
            pictures: Decodes the pictures of requests; None for a pool of its own.
            most_bytes: Bytes that the memory budget leaves for work, None without a budget.
        """
        self._accepts, self._store, self._check_fits = accepts, store, check_fits
        self._pictures = DecodePool() if pictures is None else pictures
        self._expansion = ExpansionBudget(min(MAX_EXPANDED_BYTES, most_bytes or MAX_EXPANDED_BYTES))

    async def read(
        self,
        parcel: Parcel[Any],
        spec: pb.GenerationSpec,
        request_id: str,
        *,
        caller: Caller,
        detached: bool = False,
        budget_s: float | None = None,
    ) -> Submission:
        """Reads a request.

        Args:
            parcel: The message that contains `spec`, with its tensor bytes.
            spec: The job.
            request_id: The client's id of the request.
            caller: The caller. It may name contents that it sent.
            detached: Whether the job continues without a watcher.
            budget_s: Seconds until the caller's deadline, None without one.

        Raises:
            NotFound: CONTENT_UNKNOWN.
            Unavailable: STATE_UNWRITABLE.
            OutOfMemory: The device has not enough memory.
            MessageTooLarge: The contents that the spec names are too large together.
            ZrelayError: What `parse_spec` raises.
        """

        def finished(parts: NamedSpec, known: Collection[str], decoding: Decoding) -> Submission:
            return self._read(parts, known, parcel, spec, request_id, detached, caller, budget_s, decoding)

        def begun(decoding: Decoding) -> NamedSpec | Submission:
            check_counts(spec, self._accepts)
            parts = named(parcel, spec)
            return parts if parts.refs else finished(parts, (), decoding)

        start = self._pictures.start if has_pictures(spec) else start_in_thread
        request = await start(begun).result()
        if isinstance(request, NamedSpec):
            known = await self._known_sizes(request, caller.owner)
            size = sum(known.get(sha256, 0) for _, sha256, _ in request.refs)  # each as often as it is named
            request = await self._expansion.run(size, partial(start, partial(finished, request, known)))
        # Contents on disk that may be deleted count as new: a job that needs them keeps them there.
        needed = await self._store.needed(request.sizes, caller.owner)
        new_bytes = sum(size for sha256, size in request.sizes.items() if sha256 not in needed)
        # The spec is stored in the job's row with all texts and labels, so it counts too.
        return replace(request, new_bytes=new_bytes + len(request.spec))

    async def load(self, record: JobRecord) -> JobSpec:
        """Reads the spec of a waiting job from the store.

        Raises:
            PayloadCorrupt: The spec or one of its contents is damaged.
            Unavailable: STATE_UNWRITABLE.
        """
        raw = await self._store.spec(record.arrival)
        # Not in the threads for pictures: an accepted job does not wait behind all new requests.
        return await asyncio.to_thread(run_decoding, partial(self._load, raw), self._pictures.budget)

    async def _known_sizes(self, parts: NamedSpec, owner: str) -> dict[str, int]:
        """Returns the bytes of the contents that a spec names and its sender may name."""
        sizes = {}
        for sha256 in dict.fromkeys(sha256 for _, sha256, _ in parts.refs):
            data = parts.inputs.get(sha256)
            size = await self._store.known_size(sha256, owner) if data is None else len(data)
            if size is not None:
                sizes[sha256] = size
        return sizes

    def _read(
        self,
        parts: NamedSpec,
        known: Collection[str],
        parcel: Parcel[Any],
        spec: pb.GenerationSpec,
        request_id: str,
        detached: bool,
        caller: Caller,
        budget_s: float | None,
        decoding: Decoding,
    ) -> Submission:
        fetched: dict[str, bytes] = {}

        def fetch(sha256: str, size: int, field: str) -> bytes:
            if sha256 not in known and sha256 not in parts.inputs:  # whether others have sent it makes no difference
                raise content_unknown(sha256, field)
            if sha256 not in fetched:
                fetched[sha256] = parts.inputs.get(sha256) or self._stored(sha256, field)
            found = len(fetched[sha256])
            if size and size != found:
                raise invalid(f"{field}.size_bytes", f"{found}, the content's size", size, reason="CONTENT_SIZE")
            return fetched[sha256]

        full = whole(parts.parcel, fetch) if parts.refs else Parcel(spec, parcel)
        job = parse_spec(full, full.message, self._accepts, decoding)
        self._check_fits(job)
        identity = parts.identity
        sizes = {sha256: len(data) for sha256, data in (parts.inputs | fetched).items()}
        self._fill_in(parts.parcel.message, job.sampling)
        return Submission(
            request_id=request_id,
            identity=identity,
            job=job,
            spec=parts.parcel.to_bytes(),
            inputs={sha256: parts.inputs.get(sha256) for sha256 in sizes},
            sizes=sizes,
            detached=detached,
            caller=caller.name,
            owner=caller.owner,
            budget_s=budget_s,
        )

    def _fill_in(self, spec: pb.GenerationSpec, sampling: SamplingSettings) -> None:
        """Writes the sampling into a spec to be stored, so that later defaults do not change the job.

        At least the seed is written. The rest is left out if a default is not exact as a float of the contract.
        """
        filled = sampling_message(sampling)
        try:
            same = parse_sampling(filled, self._accepts.sampling) == replace(sampling, first_step=0)
        except InvalidArgument:
            same = False
        if same:
            spec.sampling.CopyFrom(filled)
        else:
            spec.sampling.seed = sampling.seed

    def _stored(self, sha256: str, field: str) -> bytes:
        try:
            return self._store.read_now(sha256)
        except (ContentMissing, ContentDamaged) as error:
            raise content_unknown(sha256, field) from error

    def _load(self, raw: bytes, decoding: Decoding) -> JobSpec:
        @cache
        def content(sha256: str) -> bytes:
            try:
                return self._store.read_now(sha256)
            except (ContentMissing, ContentDamaged) as error:
                raise damaged("an input of this job") from error

        def read(sha256: str, size: int, field: str) -> bytes:
            return content(sha256)

        try:
            full = whole(Parcel.parse(pb.GenerationSpec, raw), read)
            return parse_spec(full, full.message, self._accepts, decoding)
        except InvalidArgument as error:
            if error.reason in ("MESSAGE_MALFORMED", "MESSAGE_TOO_COMPLEX", "TEXT_TOO_LARGE"):
                raise damaged("this job") from error
            raise


def _check_sides(width: int, height: int, limits: SamplingLimits) -> None:
    """Refuses sides that are out of range; where both are, the refusal of the width gives a remedy for both."""
    multiple, least, most = limits.size_multiple, limits.min_side, limits.max_side
    wrong = {
        name: pixels
        for name, pixels in (("width", width), ("height", height))
        if pixels % multiple or not least <= pixels <= most
    }
    if not wrong:
        return
    near = {name: min(max(round(pixels / multiple) * multiple, least), most) for name, pixels in wrong.items()}
    name, pixels = next(iter(wrong.items()))
    remedy = f"use {near[name]}"
    if len(wrong) > 1:
        remedy += f", and {near['height']} for spec.sampling.height in place of {height}"
    raise invalid(f"spec.sampling.{name}", f"{least} to {most} pixels, divisible by {multiple}", pixels, remedy=remedy)


def _number(name: str, value: float, most: float) -> float:
    if not (math.isfinite(value) and 0.0 <= value <= most):
        expected = "a number of at least 0" + (f" and at most {most:g}" if math.isfinite(most) else "")
        raise invalid(f"spec.sampling.{name}", expected, f"{value:g}")
    return float(value)


def _schedule(message: pb.SamplingOptions, limits: SamplingLimits) -> tuple[Schedule, float | None]:
    """Returns the schedule and its shift, which is None if the caller sent the sigmas."""
    steps = message.num_inference_steps if message.HasField("num_inference_steps") else None
    shift = message.shift if message.HasField("shift") else None
    if shift is not None and not (math.isfinite(shift) and _MIN_SHIFT <= shift <= _MAX_SHIFT):
        raise invalid("spec.sampling.shift", f"{_MIN_SHIFT:g} to {_MAX_SHIFT:g}", f"{shift:g}")
    if message.sigmas:
        return _explicit_schedule(message, steps, shift, limits), None
    steps = limits.defaults.num_inference_steps if steps is None else steps
    if not 1 <= steps <= limits.max_steps:
        raise invalid("spec.sampling.num_inference_steps", f"1 to {limits.max_steps}", steps)
    shift = limits.defaults.shift if shift is None else shift
    return shifted_schedule(steps, shift), shift


def _explicit_schedule(
    message: pb.SamplingOptions, steps: int | None, shift: float | None, limits: SamplingLimits
) -> Schedule:
    count = len(message.sigmas)
    if count > limits.max_steps:
        raise invalid("spec.sampling.sigmas", f"at most {limits.max_steps} values", count)
    if steps is not None and steps != count:
        raise invalid("spec.sampling.num_inference_steps", f"{count}, one for each of the sigmas, or none", steps)
    try:
        return explicit_schedule(message.sigmas, shift)
    except ValueError as error:
        raise invalid_from("spec.sampling.sigmas", error) from error


def _output(spec: pb.GenerationSpec) -> Output:
    format = enum_choice(spec.output.format, pb.ImageFormat, _FORMATS, "spec.output.format", reason="ENUM_UNKNOWN")
    quality = spec.output.quality if spec.output.HasField("quality") else Output.quality
    if not 1 <= quality <= 100:
        raise invalid("spec.output.quality", "1 to 100", quality)
    side = spec.preview.max_side if spec.preview.HasField("max_side") else Output.preview_max_side
    if not 1 <= side <= _MAX_PREVIEW_SIDE:
        expected = f"1 to {_MAX_PREVIEW_SIDE} pixels"
        raise invalid("spec.preview.max_side", expected, side, reason="PREVIEW_SIDE_INVALID")
    return Output(format or Output.format, quality, spec.output.omit_provenance, spec.preview.every_steps, side)


def _origin(request: SpecRequest, format: ImageFormat) -> Origin:
    spec, message = request.spec, request.spec.provenance
    labels = tuple(sorted(message.labels.items()))
    longest = max((len(text) for pair in labels for text in pair), default=0)
    if len(labels) > _MAX_LABELS or longest > _MAX_LABEL_CHARS:
        raise invalid(
            "spec.provenance.labels",
            f"at most {_MAX_LABELS} labels of {_MAX_LABEL_CHARS} characters",
            f"{len(labels)}, the longest of {longest}",
            reason="LABELS_TOO_LARGE",
        )
    origin = Origin(
        encoder=from_message(spec.prompt.prompt_embeds.fingerprint),
        prompt=message.prompt if message.HasField("prompt") else None,
        negative_prompt=message.negative_prompt if message.HasField("negative_prompt") else None,
        labels=labels,
    )
    size, limit = len(json.dumps([origin.prompt, origin.negative_prompt, labels])), _MAX_TEXT_BYTES[format]
    if size > limit and not spec.output.omit_provenance:
        raise invalid(
            "spec.provenance",
            f"at most {limit} bytes of text for {format}",
            size,
            reason="PROVENANCE_TOO_LARGE",
            remedy="shorten it, write a PNG, or set omit_provenance",
        )
    return origin
