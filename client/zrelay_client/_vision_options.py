"""What a caller may ask of a vision service, by keyword. What is absent or None takes the server's default."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from zrelay_client._options import WireDtype

Engine = Literal["siglip", "qwen3_vl"]
Tokens = Literal["full", "text_only", "image_only", "image_no_markers"]
Blend = Literal["interpolate", "linear", "adain", "adain_per_dim", "graduated", "slerp", "style_delta", "token_weights"]
Normalization = Literal["none", "token_rms", "global", "per_dim", "hybrid"]
OutlierMask = Literal["none", "zero", "clamp", "scale"]
Curve = Literal["linear", "ease_in", "ease_out"]


class StatesOptions(TypedDict, total=False):
    """How Qwen3-VL reads an image: `hidden_layer` counts from the end; `text` stands behind the image."""

    hidden_layer: int | None
    tokens: Tokens | None
    text: str | None
    system_prompt: str | None


class EncodeImagesOptions(StatesOptions, total=False):
    """Keywords of `encode_images`. `target_area` in pixels is that of the picture to be painted: larger references are
    resized to it. `dtype` is of the embeddings."""

    target_area: int | None
    dtype: WireDtype | None


class ConditionOptions(StatesOptions, total=False):
    """Keywords of `condition_prompt`: how a prompt is conditioned, and how the image is read where it is one.

    `alpha` is the image's share, 0 to 1; `outlier_threshold` a ratio of deviations; `token_weights`, 0 to 1, one for
    each token of the prompt, go with the blend of that name, `curve` with graduated.
    """

    alpha: float | None
    blend: Blend | None
    normalization: Normalization | None
    outlier_mask: OutlierMask | None
    outlier_threshold: float | None
    curve: Curve | None
    token_weights: Sequence[float] | None
