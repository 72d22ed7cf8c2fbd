"""Vision fingerprint: what produced the embedding of an image, and a digest of it."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from zrelay.v1.vision_pb2 import VisionEngine
from zrelay.v1.vision_pb2 import VisionFingerprint as FingerprintMessage
from zrelay_shared.errors import invalid

ENGINES = {"siglip": VisionEngine.VISION_ENGINE_SIGLIP, "qwen3_vl": VisionEngine.VISION_ENGINE_QWEN3_VL}
"""Name of an engine in fingerprints -> value of the contract's enum."""


@dataclass(frozen=True, slots=True)
class VisionFingerprint:
    """What produced the embedding of an image.

    `engine` is siglip or qwen3_vl, digests are SHA-256 in hex, `hidden_layer` is 0 for SigLIP.
    """

    engine: str
    family: str
    width: int
    model_id: str = ""
    weights_digest: str = ""
    processor_digest: str = ""
    hidden_layer: int = 0
    compute_dtype: str = ""
    backend: str = ""
    configuration_digest: str = ""

    @property
    def canonical(self) -> bytes:
        """All fields but model_id as ASCII JSON with sorted keys and no spaces.

        `configuration_digest` is left out where it is not known, so that fingerprints of earlier releases keep theirs.
        """
        content = asdict(self)
        del content["model_id"]
        if not self.configuration_digest:
            del content["configuration_digest"]
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")

    @property
    def digest(self) -> str:
        """SHA-256 of `canonical` in hex."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def message_digest(self) -> str:
        """The digest in messages and files. It leaves out `configuration_digest`.

        Earlier releases compute the digest of the fields that they know, and refuse another one.
        """
        return replace(self, configuration_digest="").digest


def to_message(fingerprint: VisionFingerprint) -> FingerprintMessage:
    """Returns the message of a fingerprint."""
    return FingerprintMessage(
        engine=ENGINES[fingerprint.engine],
        family=fingerprint.family,
        model_id=fingerprint.model_id,
        weights_digest=fingerprint.weights_digest,
        processor_digest=fingerprint.processor_digest,
        hidden_layer=fingerprint.hidden_layer,
        width=fingerprint.width,
        compute_dtype=fingerprint.compute_dtype,
        backend=fingerprint.backend,
        digest=fingerprint.message_digest,
        configuration_digest=fingerprint.configuration_digest,
    )


def from_message(message: FingerprintMessage, *, path: str) -> VisionFingerprint:
    """Returns the fingerprint of a message.

    Raises:
        InvalidArgument: FINGERPRINT_INVALID, it is missing or its digest is wrong.
    """
    fingerprint = _read(message)
    if not message.family or message.digest not in (fingerprint.message_digest, fingerprint.digest):
        raise invalid(
            path,
            "the fingerprint as the vision service sent it",
            "none" if not message.family else "one whose digest does not match its fields",
            reason="FINGERPRINT_INVALID",
            remedy="encode the image again, and pass its embedding on unchanged",
            metadata={"expected": fingerprint.message_digest, "got": message.digest},
        )
    return fingerprint


def complete_digest(message: FingerprintMessage) -> str:
    """Returns the digest of a fingerprint with its `configuration_digest`; the one that it states if that is wrong."""
    fingerprint = _read(message)
    return fingerprint.digest if message.digest == fingerprint.message_digest else message.digest


def _read(message: FingerprintMessage) -> VisionFingerprint:
    names = {value: name for name, value in ENGINES.items()}
    return VisionFingerprint(
        engine=names.get(message.engine, ""),
        family=message.family,
        width=message.width,
        model_id=message.model_id,
        weights_digest=message.weights_digest,
        processor_digest=message.processor_digest,
        hidden_layer=message.hidden_layer,
        compute_dtype=message.compute_dtype,
        backend=message.backend,
        configuration_digest=message.configuration_digest,
    )
