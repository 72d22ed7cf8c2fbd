"""Image-text scores as SigLIP was trained to give them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Scores:
    """How well texts describe images, [images, texts] float32.

    Attributes:
        probabilities: In 0..1.
        cosines: Cosines of the features, in -1..1.
    """

    probabilities: torch.Tensor
    cosines: torch.Tensor


def score(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> Scores:
    """Scores each pair on its own: sigmoid(cosine * exp(log_scale) + bias) (SigLIP, arXiv 2303.15343, section 3).

    There is no softmax over the texts: no text may fit an image, or several may. The computation is in float32 for
    every dtype of the features, because a scale of 112 would turn bfloat16's rounding of a cosine into a quarter of a
    logit.

    Args:
        images: Pooled features [images, C].
        texts: Pooled features [texts, C].
        log_scale: Learnt logarithm of the scale, [1].
        bias: Learnt bias, [1].

    Raises:
        ValueError: The shapes do not fit.
    """
    if images.dim() != 2 or texts.dim() != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(f"features: expected [n, C] twice, got {list(images.shape)} and {list(texts.shape)}")
    image_features, text_features = images.float(), texts.float()
    image_features = image_features / image_features.norm(p=2, dim=-1, keepdim=True)
    text_features = text_features / text_features.norm(p=2, dim=-1, keepdim=True)
    cosines = torch.matmul(text_features, image_features.t())  # transformers' order, for bitwise equal results
    logits = cosines * log_scale.float().exp() + bias.float()
    return Scores(torch.sigmoid(logits.t()), cosines.t())
