"""Identity of a checkpoint: digests of transformer and VAE, and the fingerprint of its encoder."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from zrelay_shared.checkpoints import ComponentFolder, PipelineFolder, open_pipeline, open_text_encoder
from zrelay_shared.configuration import Configuration, combined_digest, read_component
from zrelay_shared.digests import weights_digest
from zrelay_shared.errors import CheckpointError
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.tokenizer import identify_tokenizer, load_tokenizer

log = logging.getLogger(__name__)
FAMILY = "qwen3"
"""Family of every text encoder that a Z-Image transformer was trained with."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a checkpoint.

    Attributes:
        model_id: Name for people.
        transformer_digest, vae_digest: SHA-256 (hex) of both components.
        configuration_digest: SHA-256 (hex) of the configuration of both.
        encoder: Fingerprint of the encoder whose embeddings the transformer expects.
    """

    model_id: str
    transformer_digest: str
    vae_digest: str
    configuration_digest: str
    encoder: EncoderFingerprint

    @property
    def image_digest(self) -> str:
        """Digest of everything that must be equal to generate the same image."""
        return f"{self.transformer_digest}+{self.vae_digest}+{self.configuration_digest}"


def generates_same(accepted: str, present: str) -> bool:
    """Returns whether a job that was accepted for one `image_digest` is the same image for another.

    Earlier releases stored the digest without the configuration, which is not verified then.
    """
    return accepted == present or (accepted.count("+") == 1 and present.startswith(f"{accepted}+"))


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
    vae = pipeline.component("vae")
    configuration, vae_configuration = read_component(transformer), read_component(vae)
    return Identity(
        model_id,
        weights_digest(transformer, cache=cache),
        _vae_digest(vae, vae_configuration, cache),
        combined_digest(configuration, vae_configuration),
        _encoder(pipeline, model_id, configuration.values["cap_feat_dim"], cache),
    )


def _vae_digest(vae: ComponentFolder, configuration: Configuration, cache: Path) -> str:
    """Returns the digest of the VAE's tensors and of the scaling of its latents, which were in it before configurations
    had a digest of their own. No shift and a shift of 0 are the same."""
    scale = [configuration.values["scaling_factor"], configuration.values["shift_factor"] or None]
    return hashlib.sha256(f"{weights_digest(vae, cache=cache)} {scale}".encode()).hexdigest()


def _encoder(pipeline: PipelineFolder, model_id: str, width: int, cache: Path) -> EncoderFingerprint:
    unknown = EncoderFingerprint(family=FAMILY, width=width, model_id=model_id)
    if not (pipeline.path / "text_encoder").is_dir():
        return unknown
    try:
        folder = open_text_encoder(pipeline.path)
        tokenizer = identify_tokenizer(load_tokenizer(folder.tokenizer, folder.chat_template))
        return replace(
            unknown,
            weights_digest=weights_digest(folder.component, cache=cache),
            configuration_digest=read_component(folder.component).digest,
            tokenizer_digest=tokenizer.tokenizer_digest,
            chat_template_digest=tokenizer.chat_template_digest,
        )
    except CheckpointError as error:
        log.warning("embeddings cannot be verified against this checkpoint's encoder: %s", error.message)
        return unknown
