"""Previews: an affine map from latents to RGB, fitted to the VAE when it is loaded."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zrelay_generator.model.vae import Vae, to_pixels

_IMAGES, _SIDE, _CELLS = 12, 96, 6


@dataclass(frozen=True, eq=False)
class LatentToRgb:
    """RGB in -1 to 1 as an affine function of a latent pixel.

    Attributes:
        weight: [3, channels] float32.
        bias: [3] float32.
    """

    weight: Tensor
    bias: Tensor

    def pixels(self, latents: Tensor, max_side: int) -> Tensor:
        """Returns a picture [h, w, 3] uint8 on the CPU of latents [channels, h, w], reduced to at most `max_side`."""
        rgb = torch.einsum("oc,chw->ohw", self.weight, latents.float()) + self.bias[:, None, None]
        scale = max_side / max(rgb.shape[1:])
        if scale < 1.0:
            size = [max(1, round(side * scale)) for side in rgb.shape[1:]]
            rgb = F.interpolate(rgb[None], size=size, mode="area")[0]
        return to_pixels(rgb)


def fit_latent_to_rgb(vae: Vae) -> LatentToRgb:
    """Fits the map by least squares, from the VAE's latents of coloured pictures to their colours.

    The result is deterministic. Twelve pictures of 96 x 96 are enough for an affine map of a few dozen numbers.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    cells = torch.rand(_IMAGES, 3, _CELLS, _CELLS, generator=generator) * 2.0 - 1.0
    smooth = F.interpolate(cells[: _IMAGES // 2], size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    blocks = F.interpolate(cells[_IMAGES // 2 :], size=(_SIDE, _SIDE), mode="nearest")
    pictures = torch.cat([smooth, blocks])
    latents = vae.encode(pictures).cpu()
    colours = F.avg_pool2d(pictures, vae.factor)
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    # lstsq with the QR driver refuses rank-deficient rows; the ridge term keeps the normal equations regular.
    gram = rows.T @ rows + 1e-4 * torch.eye(rows.shape[1])
    solved = torch.linalg.solve(gram, rows.T @ colours.permute(0, 2, 3, 1).flatten(0, 2))
    return LatentToRgb(solved[:-1].T.contiguous().to(vae.device), solved[-1].contiguous().to(vae.device))
