"""A request off the wire to a JobSpec, refusing whatever is wrong with it before the device hears of it."""

import hashlib
import json
import re
import secrets
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from zrelay.v1 import generation_pb2 as pb
from zrelay_generator.api.parsing_features import parse_skip_layers, parse_start_image
from zrelay_generator.api.parsing_sampling import parse_sampling
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.offered import missing
from zrelay_generator.features.omni.request import check_omni, check_positions, check_segments, parse_references
from zrelay_generator.features.protocol import JobSpec, Origin, Output, Priority
from zrelay_generator.images.writing import ImageFormat
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.fingerprint import Verdict, compare, from_message
from zrelay_shared.limits import MAX_REQUEST_ID_CHARS
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.wire import Parcel

_REQUEST_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_REQUEST_ID_CHARS}}}")
_FORMATS = {
    pb.IMAGE_FORMAT_UNSPECIFIED: ImageFormat.PNG,
    pb.IMAGE_FORMAT_PNG: ImageFormat.PNG,
    pb.IMAGE_FORMAT_JPEG: ImageFormat.JPEG,
    pb.IMAGE_FORMAT_WEBP: ImageFormat.WEBP,
}
_PRIORITIES = {
    pb.JOB_PRIORITY_UNSPECIFIED: Priority.NORMAL,
    pb.JOB_PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.JOB_PRIORITY_NORMAL: Priority.NORMAL,
    pb.JOB_PRIORITY_BATCH: Priority.BATCH,
}
_UNBUILT = {
    "inpaint": "generate.inpaint",
    "controls": "generate.control",
    "loras": "generate.lora",
    "dype": "generate.dype",
    "passes": "generate.passes",
    "tiled_vae": "generate.tiled_vae",
}
_MAX_LABELS, _MAX_LABEL_CHARS = 32, 1024
_MAX_WORDS_BYTES = {ImageFormat.PNG: 1 << 20, ImageFormat.WEBP: 48_000, ImageFormat.JPEG: 48_000}
"""Of prompts and labels as ASCII JSON: EXIF is one segment of 64 KiB in a JPEG, and holds the rest as well."""
_MAX_PREVIEW_SIDE = 1024


def parse_request_id(text: str) -> str:
    """The client's id, or a new one where it made none."""
    if not text:
        return secrets.token_hex(16)
    if not _REQUEST_ID.fullmatch(text):
        raise InvalidArgument(
            f"request_id: expected at most {MAX_REQUEST_ID_CHARS} characters of A-Z a-z 0-9 . _ -, got {text[:80]!r}",
            field="request_id",
            reason="REQUEST_ID_INVALID",
        )
    return text


def parse_spec(parcel: Parcel[Any], spec: pb.GenerationSpec, accepts: Acceptance) -> JobSpec:
    """The job that `spec`, a part of the parcel's message, asks for. Raises InvalidArgument, PayloadCorrupt,
    EncoderMismatch, FeatureMissing, each naming the field."""
    present = {field.name for field, _ in spec.ListFields()}
    for name, feature in _UNBUILT.items():
        if name in present:
            raise missing(feature, f"spec.{name}")
    check_omni(spec, accepts)
    sampling = parse_sampling(spec.sampling, accepts.sampling)
    output, priority = _output(spec), _PRIORITIES.get(spec.priority)
    if priority is None:
        raise _unknown_enum("spec.priority", spec.priority, "JobPriority")
    prompt, segments, verdict = _embeds(parcel, spec, "prompt", accepts)
    negative: Tensor | None = None
    negative_segments: tuple[int, ...] = ()
    if sampling.guidance_scale > 0.0:
        if not spec.HasField("negative_prompt"):
            raise InvalidArgument(
                f"spec.negative_prompt: guidance_scale {sampling.guidance_scale:g} needs it, got none; encode a "
                "negative prompt (it may be empty), or set guidance_scale 0",
                field="spec.negative_prompt",
                reason="NEGATIVE_PROMPT_MISSING",
            )
        negative, negative_segments, _ = _embeds(parcel, spec, "negative_prompt", accepts)
    skip_layers = parse_skip_layers(spec, accepts)
    # Last: they decode files.
    omni = parse_references(parcel, spec, sampling, segments, negative_segments, accepts)
    start_image, sampling = parse_start_image(spec, sampling, accepts)
    return JobSpec(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        sampling=sampling,
        output=output,
        origin=_origin(spec, verdict, output.format),
        priority=priority,
        deterministic=spec.deterministic or accepts.deterministic,
        identity=_identity(spec),
        start_image=start_image,
        skip_layers=skip_layers,
        omni=omni,
    )


def _embeds(
    parcel: Parcel[Any], spec: pb.GenerationSpec, name: str, accepts: Acceptance
) -> tuple[Tensor, tuple[int, ...], Verdict]:
    """The segments of a PromptEmbeds one behind the other [T, width], the rows of each, and how its encoder relates to
    this generator."""
    path = f"spec.{name}.prompt_embeds"
    given: pb.EmbedsInput = getattr(spec, name)
    if given.WhichOneof("source") == "content":
        raise missing("content.upload", f"spec.{name}.content")
    segments = given.prompt_embeds.segments
    if not segments:
        raise InvalidArgument(
            f"{path}: expected the embeddings of one prompt as the encoder sent them, got none; encode a prompt first",
            field=path,
            reason="PROMPT_MISSING",
        )
    check_segments(spec, name, len(segments), accepts)
    fingerprint = from_message(given.prompt_embeds.fingerprint, path=f"{path}.fingerprint")
    verdict = compare(accepts.encoder, fingerprint)
    parts = []
    for at, segment in enumerate(segments):
        field = f"{path}.segments[{at}].prompt_embeds"
        part = from_wire(parcel, segment.prompt_embeds, field=field, rank=2)
        tokens, width = part.shape
        if width != accepts.embeds_width:
            raise _shape_refusal(field, f"rows of {accepts.embeds_width} values", f"rows of {width}", "TENSOR_SHAPE")
        if tokens > accepts.text_limit:
            raise _shape_refusal(
                field,
                f"at most {accepts.text_limit} tokens (GetInfo's text_limit: pass it to the encoder)",
                f"{tokens}",
                "PROMPT_TOO_LONG",
            )
        parts.append(part)
    lengths = tuple(map(len, parts))
    if spec.HasField("omni"):
        check_positions(lengths, name, accepts.text_limit)
    return parts[0] if len(parts) == 1 else torch.cat(parts), lengths, verdict


def _output(spec: pb.GenerationSpec) -> Output:
    format = _FORMATS.get(spec.output.format)
    if format is None:
        raise _unknown_enum("spec.output.format", spec.output.format, "ImageFormat")
    quality = spec.output.quality if spec.output.HasField("quality") else Output.quality
    if not 1 <= quality <= 100:
        raise InvalidArgument(
            f"spec.output.quality: expected 1 to 100, got {quality}",
            field="spec.output.quality",
            reason="QUALITY_INVALID",
        )
    side = spec.preview.max_side if spec.preview.HasField("max_side") else Output.preview_max_side
    if not 1 <= side <= _MAX_PREVIEW_SIDE:
        raise InvalidArgument(
            f"spec.preview.max_side: expected 1 to {_MAX_PREVIEW_SIDE} pixels, got {side}",
            field="spec.preview.max_side",
            reason="PREVIEW_SIDE_INVALID",
        )
    return Output(format, quality, spec.output.omit_provenance, spec.preview.every_steps, side)


def _origin(spec: pb.GenerationSpec, verdict: Verdict, format: ImageFormat) -> Origin:
    said = spec.provenance
    labels = tuple(sorted(said.labels.items()))
    longest = max((len(text) for pair in labels for text in pair), default=0)
    if len(labels) > _MAX_LABELS or longest > _MAX_LABEL_CHARS:
        raise InvalidArgument(
            f"spec.provenance.labels: expected at most {_MAX_LABELS} labels of {_MAX_LABEL_CHARS} characters, got "
            f"{len(labels)}, the longest of {longest}",
            field="spec.provenance.labels",
            reason="LABELS_TOO_LARGE",
        )
    origin = Origin(
        encoder=json.dumps(_encoder(spec), sort_keys=True),
        relation=verdict.relation,
        differences=verdict.differences,
        prompt=said.prompt if said.HasField("prompt") else None,
        negative_prompt=said.negative_prompt if said.HasField("negative_prompt") else None,
        labels=labels,
    )
    size = len(json.dumps([origin.prompt, origin.negative_prompt, labels]))
    if size > _MAX_WORDS_BYTES[format] and not spec.output.omit_provenance:
        raise InvalidArgument(
            f"spec.provenance: expected at most {_MAX_WORDS_BYTES[format]} bytes of text for {format}, got {size}; "
            "shorten it, write a PNG, or set omit_provenance",
            field="spec.provenance",
            reason="PROVENANCE_TOO_LARGE",
        )
    return origin


def _encoder(spec: pb.GenerationSpec) -> dict[str, object]:
    """The fingerprint for the file, with its digest. No local path of the encoder's machine goes into a picture."""
    fingerprint = from_message(spec.prompt.prompt_embeds.fingerprint)
    content = asdict(fingerprint) | {"digest": fingerprint.digest}
    content["model_id"] = fingerprint.model_id.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return content


def _identity(spec: pb.GenerationSpec) -> str:
    """SHA-256 (hex) over everything asked for. Tensor bytes count by their checksums, which were compared before."""
    digest = hashlib.sha256()
    for field, value in spec.ListFields():
        digest.update(field.name.encode())
        if isinstance(value, pb.EmbedsInput):
            embeds = value.prompt_embeds
            tensors = [segment.prompt_embeds for segment in embeds.segments]
            sums = [(tensor.dtype, list(tensor.shape), tensor.crc32c) for tensor in tensors]
            digest.update(f"{embeds.fingerprint.digest} {sums}".encode())
        elif hasattr(value, "SerializeToString"):
            digest.update(value.SerializeToString(deterministic=True))
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _shape_refusal(field: str, expected: str, got: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: expected {expected}, got {got}",
        field=field,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )


def _unknown_enum(field: str, value: int, name: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: expected a {name} of the contract, got the unknown value {value}; this generator is older than "
        "your client",
        field=field,
        reason="ENUM_UNKNOWN",
    )
