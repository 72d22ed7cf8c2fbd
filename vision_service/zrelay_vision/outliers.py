"""Dimensions of an image's states whose deviation is far from the text encoder's, and what is done with them."""

from dataclasses import dataclass
from enum import StrEnum

import torch

_LEAST = 1e-6


class OutlierMask(StrEnum):
    """What is done with an outlier dimension."""

    NONE = "none"
    ZERO = "zero"
    CLAMP = "clamp"
    SCALE = "scale"


@dataclass(frozen=True, slots=True)
class Outliers:
    """Dimensions with a ratio above the threshold, the largest first, and their ratios."""

    dimensions: tuple[int, ...]
    ratios: tuple[float, ...]


def find_outliers(states: torch.Tensor, reference_std: torch.Tensor, threshold: float) -> Outliers:
    """Dimensions d of states [T, width] with std_d / reference_std_d > threshold; std over the tokens, population."""
    ratios = states.std(0, correction=0) / reference_std.clamp_min(_LEAST)
    found = (ratios > threshold).nonzero().flatten()
    order = found[ratios[found].argsort(descending=True, stable=True)]
    return Outliers(tuple(order.tolist()), tuple(ratios[order].tolist()))


def mask_outliers(states: torch.Tensor, outliers: Outliers, mask: OutlierMask, threshold: float) -> torch.Tensor:
    """States [T, width] with those dimensions multiplied by a factor:

    zero: 0. clamp: threshold / ratio, which brings the deviation to threshold times the reference's. scale: the root of
    that, which leaves more of it. (The document's own `scale` was its `clamp`, zimage.md F5.)
    """
    if mask is OutlierMask.NONE or not outliers.dimensions:
        return states
    ratios = torch.tensor(outliers.ratios, dtype=states.dtype)
    match mask:
        case OutlierMask.ZERO:
            factors = torch.zeros_like(ratios)
        case OutlierMask.CLAMP:
            factors = threshold / ratios
        case _:
            factors = (threshold / ratios).sqrt()
    masked = states.clone()
    masked[:, list(outliers.dimensions)] *= factors
    return masked
