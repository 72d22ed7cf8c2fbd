"""Identity of a checkpoint: digests of transformer and VAE, and the fingerprint of its encoder."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zrelay_shared.checkpoints import PipelineFolder, open_pipeline
from zrelay_shared.configuration import Configuration, combined_digest, read_component
from zrelay_shared.errors import Cancelled, CheckpointError
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.tokenizer import identify_tokenizer, load_tokenizer
from zrelay_shared.weight_files import WeightFiles, weights_digest

log = logging.getLogger(__name__)
FAMILY = "qwen3"
"""Family of every text encoder that a Z-Image transformer was trained with."""
_CACHE_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a checkpoint.

    Attributes:
        model_id: Name for people.
        transformer_digest, vae_digest: SHA-256 (hex) of both components.
        configuration_digest: SHA-256 (hex) of the configuration of both.
        encoder: Fingerprint of the encoder whose embeddings the transformer expects.
        pending: Weights of that encoder whose digest is not in `encoder` yet, None if nothing is to be computed.
    """

    model_id: str
    transformer_digest: str
    vae_digest: str
    configuration_digest: str
    encoder: EncoderFingerprint
    pending: WeightFiles | None = None

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
    """Reads the whole identity of a checkpoint without loading it. Arguments and errors as for `identify_loaded`."""
    identity = identify_loaded(folder, model_id, cache, {}, {})
    if identity.pending is None:
        return identity
    return replace(identity, encoder=hash_encoder(identity.encoder, identity.pending), pending=None)


def identify_loaded(
    folder: Path,
    model_id: str,
    cache: Path,
    weights: Mapping[str, str],
    configurations: Mapping[str, Configuration],
) -> Identity:
    """Computes the identity of a loaded model. The digest of the text encoder's weights is only taken from the cache.

    What was loaded is not read again: the files may have changed since.

    Args:
        folder: A pipeline folder. The text encoder may be missing; the digests of the encoder are then unknown.
        model_id: Name for people.
        cache: Folder in which the digests of weights are kept, so that they are hashed once.
        weights: Digests of weights as they were loaded, by the name of the component. Others are read.
        configurations: Configurations as they were loaded, by the name of the component. Others are read.

    Raises:
        CheckpointError: The folder is incomplete or damaged.
    """
    pipeline = open_pipeline(folder)

    def configuration_of(name: str) -> Configuration:
        return configurations.get(name) or read_component(pipeline.component(name))

    def weights_of(name: str) -> str:
        return weights.get(name) or weights_digest(pipeline.component(name), cache=cache)

    configuration, vae_configuration = configuration_of("transformer"), configuration_of("vae")
    encoder, pending = _encoder(pipeline, model_id, configuration.values["cap_feat_dim"], cache)
    return Identity(
        model_id,
        weights_of("transformer"),
        _vae_digest(vae_configuration, weights_of("vae")),
        combined_digest(configuration, vae_configuration),
        encoder,
        pending,
    )


def hash_encoder(
    encoder: EncoderFingerprint, weights: WeightFiles, stopped: Callable[[], bool] = lambda: False
) -> EncoderFingerprint:
    """Computes the digest of the text encoder's weights, in the calling thread.

    Another process on this machine, such as the encoder service, may put the digest into the cache meanwhile.

    Args:
        encoder: The fingerprint so far.
        weights: The text encoder's weights.
        stopped: Checked before each chunk.

    Returns:
        The fingerprint with the digest; without it if the weights cannot be read, which is logged.

    Raises:
        Cancelled: `stopped` returned True.
    """
    looked_at = time.monotonic()

    def cancelled() -> bool:
        nonlocal looked_at
        if stopped():
            return True
        if time.monotonic() - looked_at < _CACHE_POLL_S:
            return False
        looked_at = time.monotonic()
        return weights.refresh()

    try:
        weights.read({}, threads=1, cancelled=cancelled)
    except Cancelled:
        if not weights.digest:
            raise
    except (CheckpointError, OSError) as error:
        log.warning("embeddings cannot be verified against this checkpoint's encoder: %s", error)
    return replace(encoder, weights_digest=weights.digest)


def _vae_digest(configuration: Configuration, weights: str) -> str:
    """Returns the digest of the VAE's tensors and of the scaling of its latents, which were in it before configurations
    had a digest of their own. No shift and a shift of 0 are the same."""
    scale = [configuration.values["scaling_factor"], configuration.values["shift_factor"] or None]
    return hashlib.sha256(f"{weights} {scale}".encode()).hexdigest()


def _encoder(
    pipeline: PipelineFolder, model_id: str, width: int, cache: Path
) -> tuple[EncoderFingerprint, WeightFiles | None]:
    """Returns what is known at once of the text encoder, and its weights if their digest must be computed."""
    unknown = EncoderFingerprint(family=FAMILY, width=width, model_id=model_id)
    if not (pipeline.path / "text_encoder").is_dir():
        return unknown, None
    known = unknown
    try:
        # Weights that cannot be read leave the tokenizer known: embeddings of another one are refused all the same.
        tokenizer = identify_tokenizer(load_tokenizer(pipeline.tokenizer(), pipeline.chat_template()))
        known = replace(
            unknown,
            tokenizer_digest=tokenizer.tokenizer_digest,
            chat_template_digest=tokenizer.chat_template_digest,
        )
        component = pipeline.component("text_encoder")
        known = replace(known, configuration_digest=read_component(component).digest)
        weights = WeightFiles(component, cache=cache)
    except CheckpointError as error:
        log.warning("embeddings cannot be verified against this checkpoint's encoder: %s", error.message)
        return known, None
    return replace(known, weights_digest=weights.digest), None if weights.digest else weights
