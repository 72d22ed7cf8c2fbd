"""Image-text scores as SigLIP was trained to give them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Scores:
    """How well texts describe images: `probabilities` in 0..1 and `cosines` in -1..1, both [images, texts] float32."""

    probabilities: torch.Tensor
    cosines: torch.Tensor


def score(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> Scores:
    """Scores of pooled features [images, C] and [texts, C].

    cosine * exp(log_scale) + bias through a sigmoid, each pair on its own: no softmax over texts, so that none of them
    may fit, or several (SigLIP, arXiv 2303.15343, section 3). Computed in float32 whatever the features' dtype: a scale
    of 112 would turn bfloat16's rounding of a cosine into a quarter of a logit. `log_scale` and `bias` are [1].
    """
    if images.dim() != 2 or texts.dim() != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(f"features: expected [n, C] twice, got {list(images.shape)} and {list(texts.shape)}")
    one, other = images.float(), texts.float()
    one = one / one.norm(p=2, dim=-1, keepdim=True)
    other = other / other.norm(p=2, dim=-1, keepdim=True)
    cosines = torch.matmul(other, one.t())  # in the order of transformers, to be equal to the last bit
    logits = cosines * log_scale.float().exp() + bias.float()
    return Scores(torch.sigmoid(logits.t()), cosines.t())
