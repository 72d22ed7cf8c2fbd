"""Finds and masks dimensions of an image's states whose deviation is far from that of the text encoder."""

from dataclasses import dataclass
from enum import StrEnum

import torch

_EPSILON = 1e-6


class OutlierMask(StrEnum):
    """How an outlier dimension is changed."""

    NONE = "none"
    ZERO = "zero"
    CLAMP = "clamp"
    SCALE = "scale"


@dataclass(frozen=True, slots=True)
class Outliers:
    """Dimensions whose ratio is above the threshold, largest first, with their ratios."""

    dimensions: tuple[int, ...]
    ratios: tuple[float, ...]


def find_outliers(states: torch.Tensor, reference_std: torch.Tensor, threshold: float) -> Outliers:
    """Finds dimensions d of states [T, width] with std_d / reference_std_d > threshold (population std over tokens)."""
    ratios = states.std(0, correction=0) / reference_std.clamp_min(_EPSILON)
    found = (ratios > threshold).nonzero().flatten()
    order = found[ratios[found].argsort(descending=True, stable=True)]
    return Outliers(tuple(order.tolist()), tuple(ratios[order].tolist()))


def mask_outliers(states: torch.Tensor, outliers: Outliers, mask: OutlierMask, threshold: float) -> torch.Tensor:
    """Multiplies the outlier dimensions of states [T, width] by a factor.

    zero: 0. clamp: threshold / ratio, so that the deviation becomes threshold times the reference's. scale: the square
    root of that, which is weaker. (In the seed document `scale` equals `clamp`; see zimage.md, F5.)
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
