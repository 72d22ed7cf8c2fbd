"""Identity of a checkpoint: digests of transformer and VAE, and the fingerprint of its encoder."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from zrelay_shared.checkpoints import ComponentFolder, PipelineFolder, open_pipeline, open_text_encoder
from zrelay_shared.digests import template_digest, tokenizer_digest
from zrelay_shared.errors import CheckpointError
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.weight_files import weights_digest

log = logging.getLogger(__name__)
FAMILY = "qwen3"
"""Family of every text encoder that a Z-Image transformer was trained with."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a checkpoint.

    Attributes:
        model_id: Name for people.
        transformer_digest, vae_digest: SHA-256 (hex) of both components.
        encoder: Fingerprint of the encoder whose embeddings the transformer expects.
    """

    model_id: str
    transformer_digest: str
    vae_digest: str
    encoder: EncoderFingerprint

    @property
    def image_digest(self) -> str:
        """Digest of everything that must be equal to generate the same image."""
        return f"{self.transformer_digest}+{self.vae_digest}"


def identify(folder: Path, model_id: str, cache: Path) -> Identity:
    """Reads the identity of a checkpoint without loading it.

    Args:
        folder: A pipeline folder. The text encoder may be missing; the digests of the encoder are then unknown.
        model_id: Name for people.
        cache: Folder in which the digests of weights are kept, so that they are hashed once.

    Raises:
        CheckpointError: The folder is incomplete or damaged.
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
    """Returns the digest of the VAE's tensors and of the scaling of its latents."""
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
