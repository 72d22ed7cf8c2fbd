"""The fingerprint of this encoder: what made its embeddings."""

from dataclasses import replace
from pathlib import Path

import torch

from zrelay_shared.checkpoints import TextEncoderFolder
from zrelay_shared.digests import template_digest, tokenizer_digest, weights_digest
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.torch_devices import dtype_name


def identify(
    folder: TextEncoderFolder,
    *,
    model_id: str,
    width: int,
    hidden_layer: int,
    device: torch.device,
    dtype: torch.dtype,
    cache: Path | None,
) -> EncoderFingerprint:
    """The fingerprint of a default request. Reads the weights, unless `cache` knows them. Raises CheckpointError."""
    return EncoderFingerprint(
        family=str(folder.component.config["model_type"]),
        width=width,
        model_id=model_id,
        weights_digest=weights_digest(folder.component, cache=cache),
        tokenizer_digest=tokenizer_digest(folder.tokenizer),
        chat_template_digest=template_digest(folder.chat_template),
        hidden_layer=hidden_layer,
        before_final_norm=hidden_layer != -1,
        compute_dtype=dtype_name(dtype),
        backend=f"torch-{device.type}",
    )


def of_request(base: EncoderFingerprint, *, hidden_layer: int, think_mode: str, padded: bool) -> EncoderFingerprint:
    """`base` with what one prompt of a request changes."""
    return replace(
        base,
        hidden_layer=hidden_layer,
        before_final_norm=hidden_layer != -1,
        think_mode=think_mode,
        modifications=("padding",) if padded else (),
    )
