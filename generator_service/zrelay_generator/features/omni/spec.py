"""Reference images of a Z-Image Omni job, as the device takes them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """What a picture is painted after; all of it may be empty, which is Omni without references.

    Attributes: `pictures` [3, h, w] uint8 each, sides divisible by the VAE's factor and the patch; `grids`
    [rows, columns, siglip_width] one for each, of any dtype, on the CPU; `segments` and `negative_segments` how many
    rows of the job's embeddings belong to each segment of the prompt; `files` SHA-256 (hex) of the files that the
    pictures came as, `encoders` the fingerprint digests of what made the grids ("" where not said).
    """

    pictures: tuple[Tensor, ...]
    grids: tuple[Tensor, ...]
    segments: tuple[int, ...]
    negative_segments: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
