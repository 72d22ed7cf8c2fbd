"""Reference statistics of encoders: the sets that `zrelay calibrate` made, and which of them fits a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from zrelay_shared import reference_file
from zrelay_shared.errors import CheckpointError, InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.reference_file import ReferenceSet

MUST_MATCH = (
    "family",
    "width",
    "weights_digest",
    "tokenizer_digest",
    "hidden_layer",
    "before_final_norm",
    "layer_weights",
    "quantization",
)
"""Fields of the fingerprint that decide what embeddings look like; the rest (think mode, dtype, padding, ...) bends
single prompts, not the space they live in."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceStatistics:
    """What the embeddings of an encoder look like: `mean` and `std` [width] float32, population statistics over all
    tokens but the first of each prompt (an attention sink); `token_rms` the median root mean square of such a token.

    `encoder_digest` and `hidden_layer` are of the encoder that the `tokens` of `prompts` prompts came from.
    """

    mean: torch.Tensor
    std: torch.Tensor
    token_rms: float
    encoder_digest: str
    hidden_layer: int
    prompts: int
    tokens: int


class ReferenceSets:
    """The sets of one folder."""

    def __init__(self, sets: Sequence[ReferenceSet]) -> None:
        # Where several fit, the one of the larger corpus speaks; the digest settles the rest.
        ordered = sorted(sets, key=lambda found: (-found.tokens, found.fingerprint.digest))
        self._sets = [(found.fingerprint, _statistics(found)) for found in ordered]

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the encoders whose statistics are here."""
        return tuple(dict.fromkeys(fingerprint.digest for fingerprint, _ in self._sets))

    def reference_for(self, fingerprint: EncoderFingerprint) -> ReferenceStatistics | None:
        """The statistics of the encoder and layer that made some embeddings; None where no set is theirs."""
        wanted = [getattr(fingerprint, name) for name in MUST_MATCH]
        for made_by, statistics in self._sets:
            if [getattr(made_by, name) for name in MUST_MATCH] == wanted:
                return statistics
        return None


def open_reference_sets(folder: Path | None) -> ReferenceSets:
    """Every set (`*.safetensors`) in a folder; none where there is no folder. Raises CheckpointError for a damaged one,
    OSError."""
    if folder is None or not folder.exists():
        return ReferenceSets(())
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, expected the folder of the sets that `zrelay calibrate` made")
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
