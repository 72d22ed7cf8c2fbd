"""Encoder fingerprint: what produced some embeddings, a digest of it, and whether a generator may use them.

`RELATION_OF_DIFFERENCE`, which docs/explanation/identity.md repeats, is the only place that classifies differences.
"""

import hashlib
import json
import struct
from dataclasses import dataclass, field, fields, replace

from zrelay.v1.embeds_pb2 import EncoderFingerprint as FingerprintMessage
from zrelay.v1.embeds_pb2 import EncoderRelation, LayerWeight, ThinkMode
from zrelay_shared.errors import EncoderMismatch

EXACT, EQUIVALENT, EXPERIMENTAL, UNVERIFIED, REFUSED = "exact", "equivalent", "experimental", "unverified", "refused"

RELATION_OF_DIFFERENCE = {
    "family": REFUSED,
    "width": REFUSED,
    "tokenizer_digest": REFUSED,
    "weights_digest": EXPERIMENTAL,
    "configuration_digest": EXPERIMENTAL,
    "chat_template_digest": EXPERIMENTAL,
    "hidden_layer": EXPERIMENTAL,
    "before_final_norm": EXPERIMENTAL,
    "layer_weights": EXPERIMENTAL,
    "think_mode": EXPERIMENTAL,
    "quantization": EXPERIMENTAL,
    "modifications": EXPERIMENTAL,
    "compute_dtype": EQUIVALENT,
    "backend": EQUIVALENT,
}
"""Field -> relation that a difference in it leads to, worst first."""

_WORST_FIRST = (EXPERIMENTAL, UNVERIFIED, EQUIVALENT, EXACT)
_WHERE_EMPTY_IS_UNKNOWN = (
    "weights_digest",
    "configuration_digest",
    "tokenizer_digest",
    "chat_template_digest",
    "compute_dtype",
    "backend",
)
THINK_MODES = {
    "none": ThinkMode.THINK_MODE_NONE,
    "empty": ThinkMode.THINK_MODE_EMPTY,
    "content": ThinkMode.THINK_MODE_CONTENT,
}
RELATIONS = {
    EXACT: EncoderRelation.ENCODER_RELATION_EXACT,
    EQUIVALENT: EncoderRelation.ENCODER_RELATION_EQUIVALENT,
    EXPERIMENTAL: EncoderRelation.ENCODER_RELATION_EXPERIMENTAL,
    UNVERIFIED: EncoderRelation.ENCODER_RELATION_UNVERIFIED,
}


@dataclass(frozen=True, slots=True)
class EncoderFingerprint:
    """What computed the embeddings.

    Digests are SHA-256 in hex, "" if they are not known. `layer_weights` are rounded to float32, as in
    the message, so that client and server compute the same digest.
    """

    family: str
    width: int
    model_id: str = ""
    weights_digest: str = ""
    tokenizer_digest: str = ""
    chat_template_digest: str = ""
    hidden_layer: int = -2
    before_final_norm: bool = True
    layer_weights: tuple[tuple[int, float], ...] = ()
    think_mode: str = "none"
    quantization: str = "none"
    compute_dtype: str = ""
    backend: str = ""
    modifications: tuple[str, ...] = ()
    configuration_digest: str = ""

    def __post_init__(self) -> None:
        weights = tuple(
            (layer, struct.unpack("<f", struct.pack("<f", weight))[0]) for layer, weight in self.layer_weights
        )
        object.__setattr__(self, "layer_weights", weights)

    @property
    def canonical(self) -> bytes:
        """All fields but model_id as ASCII JSON with sorted keys and no spaces.

        The weights in `layer_weights` are written as the hex digits of their float32.

        `configuration_digest` is left out where it is not known, so that fingerprints of earlier releases keep theirs.
        """
        unused = ("model_id",) if self.configuration_digest else ("model_id", "configuration_digest")
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in unused}
        content["layer_weights"] = [(layer, struct.pack(">f", weight).hex()) for layer, weight in self.layer_weights]
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


@dataclass(frozen=True, slots=True)
class EncoderComparison:
    """The relation of an encoder to a generator, and the differences that lead to it ("field: there, here ...")."""

    relation: str
    differences: tuple[str, ...] = field(default=())


def comparable(first: EncoderFingerprint, second: EncoderFingerprint) -> tuple[EncoderFingerprint, EncoderFingerprint]:
    """Returns both fingerprints, without `configuration_digest` if one does not have it.

    Encoders of this release and of earlier ones can stand in for each other then, as they could before.
    """
    if first.configuration_digest and second.configuration_digest:
        return first, second
    return replace(first, configuration_digest=""), replace(second, configuration_digest="")


def compare(expected: EncoderFingerprint, actual: EncoderFingerprint) -> EncoderComparison:
    """Compares the fingerprint of embeddings with the one that a generator expects.

    Args:
        expected: The encoder that the generator was trained with.
        actual: The encoder that made the embeddings.

    Returns:
        The relation and the differences. A digest that is "" on either side is unknown: the relation is `unverified` at
        best.

    Raises:
        EncoderMismatch: A difference is refused.
    """
    worst, differences = EXACT, []
    for name, meaning in RELATION_OF_DIFFERENCE.items():
        wanted, got = getattr(expected, name), getattr(actual, name)
        if wanted == got:
            continue
        unknown = name in _WHERE_EMPTY_IS_UNKNOWN and "" in (wanted, got)
        if meaning == REFUSED and not unknown:
            raise _mismatch(name, wanted, got, expected, actual)
        if unknown and meaning == EQUIVALENT:
            continue
        relation = UNVERIFIED if unknown else meaning
        here, there = (("not known" if unknown and not value else _shown(value)) for value in (wanted, got))
        differences.append(f"{name}: {there}, here {here}")
        worst = min(worst, relation, key=_WORST_FIRST.index)
    return EncoderComparison(worst, tuple(differences))


def _mismatch(
    name: str, wanted: object, got: object, expected: EncoderFingerprint, actual: EncoderFingerprint
) -> EncoderMismatch:
    whose = f" ({actual.model_id})" if actual.model_id else ""
    home = expected.model_id or "this generator's own checkpoint"
    return EncoderMismatch(
        f"these embeddings come from another encoder{whose}: {name} {_shown(got)}, while this generator was trained "
        f"with {_shown(wanted)}; encode the prompt with the text encoder of {home}: "
        "`zrelay serve encoder --model FOLDER` on the pipeline folder that the generator uses",
        field="spec.prompt.prompt_embeds.fingerprint",
        metadata={"field": name, "expected": wanted, "got": got, "subject": "encoder"},
    )


def _shown(value: object) -> str:
    text = ", ".join(map(_shown, value)) if isinstance(value, tuple) else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text or "none"


def to_message(fingerprint: EncoderFingerprint) -> FingerprintMessage:
    """Returns the message of a fingerprint."""
    return FingerprintMessage(
        family=fingerprint.family,
        model_id=fingerprint.model_id,
        weights_digest=fingerprint.weights_digest,
        tokenizer_digest=fingerprint.tokenizer_digest,
        chat_template_digest=fingerprint.chat_template_digest,
        width=fingerprint.width,
        hidden_layer=fingerprint.hidden_layer,
        before_final_norm=fingerprint.before_final_norm,
        layer_weights=[LayerWeight(hidden_layer=layer, weight=weight) for layer, weight in fingerprint.layer_weights],
        think_mode=THINK_MODES[fingerprint.think_mode],
        quantization=fingerprint.quantization,
        compute_dtype=fingerprint.compute_dtype,
        backend=fingerprint.backend,
        modifications=fingerprint.modifications,
        digest=fingerprint.message_digest,
        configuration_digest=fingerprint.configuration_digest,
    )


def from_message(message: FingerprintMessage, *, path: str = "fingerprint") -> EncoderFingerprint:
    """Returns the fingerprint of a message. Raises EncoderMismatch if it is missing or its digest is wrong."""
    modes = {value: name for name, value in THINK_MODES.items()}
    fingerprint = EncoderFingerprint(
        family=message.family,
        width=message.width,
        model_id=message.model_id,
        weights_digest=message.weights_digest,
        tokenizer_digest=message.tokenizer_digest,
        chat_template_digest=message.chat_template_digest,
        hidden_layer=message.hidden_layer,
        before_final_norm=message.before_final_norm,
        layer_weights=tuple((layer.hidden_layer, layer.weight) for layer in message.layer_weights),
        think_mode=modes.get(message.think_mode, "none"),
        quantization=message.quantization or "none",
        compute_dtype=message.compute_dtype,
        backend=message.backend,
        modifications=tuple(message.modifications),
        configuration_digest=message.configuration_digest,
    )
    if not message.family or message.digest not in (fingerprint.message_digest, fingerprint.digest):
        what = "no fingerprint" if not message.family else "a fingerprint whose digest does not match its fields"
        raise EncoderMismatch(
            f"{path}: expected the fingerprint as the encoder sent it, got {what}: pass PromptEmbeds on unchanged",
            field=path,
            reason="FINGERPRINT_INVALID",
            metadata={"expected": fingerprint.message_digest, "got": message.digest},
        )
    return fingerprint
