"""Reference statistics of encoders: the files that `zrelay calibrate` writes, and which of them fits a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from zrelay_shared import reference_file
from zrelay_shared.errors import CheckpointError, InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint, comparable
from zrelay_shared.reference_file import ReferenceSet

MUST_MATCH = (
    "family",
    "width",
    "weights_digest",
    "configuration_digest",
    "tokenizer_digest",
    "hidden_layer",
    "before_final_norm",
    "layer_weights",
    "quantization",
)
"""Fields of the fingerprint that must be equal. The others (think mode, dtype, padding, ...) change single prompts, not
the distribution of embeddings."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceStatistics:
    """Population statistics of an encoder's embeddings, without the first token of each prompt (an attention sink).

    Attributes:
        mean: Mean of each dimension, [width] float32.
        std: Standard deviation of each dimension, [width] float32.
        token_rms: Median root mean square of a token.
        encoder_digest: Digest of the encoder's fingerprint.
        hidden_layer: The encoder's hidden layer.
        prompts: Number of prompts measured.
        tokens: Number of tokens measured.
    """

    mean: torch.Tensor
    std: torch.Tensor
    token_rms: float = 0.0
    encoder_digest: str = ""
    hidden_layer: int = 0
    prompts: int = 0
    tokens: int = 0


class ReferenceSets:
    """The reference statistics of one folder."""

    def __init__(self, sets: Sequence[ReferenceSet]) -> None:
        # The set of the larger corpus is used if several fit; the digest makes the order deterministic.
        ordered = sorted(sets, key=lambda found: (-found.tokens, found.fingerprint.digest))
        self._sets = [(found.fingerprint, _statistics(found)) for found in ordered]

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the encoders that have statistics."""
        return tuple(dict.fromkeys(fingerprint.digest for fingerprint, _ in self._sets))

    def reference_for(self, fingerprint: EncoderFingerprint) -> ReferenceStatistics | None:
        """Returns the statistics of the encoder and layer that made some embeddings, or None if there are none."""
        for made_by, statistics in self._sets:
            known, wanted = comparable(made_by, fingerprint)
            if all(getattr(known, name) == getattr(wanted, name) for name in MUST_MATCH):
                return statistics
        return None


def open_reference_sets(folder: Path | None) -> ReferenceSets:
    """Reads every set (`*.safetensors`) in a folder. A missing folder has no sets.

    Raises:
        CheckpointError: A set is damaged, or `folder` is a file.
        OSError: A file cannot be read.
    """
    if folder is None or not folder.exists():
        return ReferenceSets(())
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected the folder of the sets that `zrelay calibrate` wrote, got a file")
    sets = []
    for file in sorted(folder.glob(f"*{reference_file.SUFFIX}")):
        try:
            sets.append(reference_file.read(file))
        except InvalidArgument as error:
            raise CheckpointError(
                f"{folder}: {error.message}, or move it elsewhere", metadata={"file": file.name}
            ) from error
    return ReferenceSets(sets)


def _statistics(found: ReferenceSet) -> ReferenceStatistics:
    return ReferenceStatistics(
        mean=torch.tensor(found.mean, dtype=torch.float32),
        std=torch.tensor(found.std, dtype=torch.float32),
        token_rms=found.median_token_rms,
        encoder_digest=found.fingerprint.digest,
        hidden_layer=found.fingerprint.hidden_layer,
        prompts=found.prompts,
        tokens=found.tokens,
    )
