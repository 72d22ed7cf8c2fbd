"""Who a checkpoint is: digests of what paints, and the encoder that belongs to it as far as the folder tells."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from zrelay_shared.checkpoints import ComponentFolder, PipelineFolder, open_pipeline, open_text_encoder
from zrelay_shared.digests import template_digest, tokenizer_digest, weights_digest
from zrelay_shared.errors import CheckpointError
from zrelay_shared.fingerprint import EncoderFingerprint

log = logging.getLogger(__name__)
FAMILY = "qwen3"
"""Of every text encoder that a Z-Image transformer was trained with."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`model_id` for people; `transformer_digest` and `vae_digest` SHA-256 (hex); `encoder` what the embeddings should
    come from."""

    model_id: str
    transformer_digest: str
    vae_digest: str
    encoder: EncoderFingerprint

    @property
    def paints(self) -> str:
        """What has to be equal for the same picture."""
        return f"{self.transformer_digest}+{self.vae_digest}"


def identify(folder: Path, model_id: str, cache: Path) -> Identity:
    """Reads what tells the checkpoint apart. Weights are hashed once and remembered in `cache`; nothing is loaded.

    Raises CheckpointError. A folder without a text encoder is complete: its encoder's digests are then not known.
    """
    pipeline = open_pipeline(folder)
    transformer = pipeline.component("transformer")
    width = transformer.config.get("cap_feat_dim", 2560)
    if not isinstance(width, int):
        raise CheckpointError(f"transformer/config.json says cap_feat_dim {width!r}, expected a whole number")
    return Identity(
        model_id,
        weights_digest(transformer, cache=cache),
        _vae_digest(pipeline.component("vae"), cache),
        _encoder(pipeline, model_id, width, cache),
    )


def _vae_digest(vae: ComponentFolder, cache: Path) -> str:
    """Of its tensors, and of how latents are scaled before they reach them."""
    scale = [vae.config.get(name) for name in ("scaling_factor", "shift_factor")]
    return hashlib.sha256(f"{weights_digest(vae, cache=cache)} {scale}".encode()).hexdigest()


def _encoder(pipeline: PipelineFolder, model_id: str, width: int, cache: Path) -> EncoderFingerprint:
    unknown = EncoderFingerprint(family=FAMILY, width=width, model_id=model_id)
    if not (pipeline.path / "text_encoder").is_dir():
        return unknown
    try:
        folder = open_text_encoder(pipeline.path)
        return replace(
            unknown,
            weights_digest=weights_digest(folder.component, cache=cache),
            tokenizer_digest=tokenizer_digest(folder.tokenizer),
            chat_template_digest=template_digest(folder.chat_template),
        )
    except CheckpointError as error:
        log.warning("embeddings cannot be verified against this checkpoint's encoder: %s", error.message)
        return unknown
