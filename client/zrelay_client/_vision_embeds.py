"""Images' embeddings in the client's hands: bytes to carry, never tensors to look into."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zrelay_client._embeds import Embeds
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_shared.wire import Parcel


class ImageEmbeds:
    """What a vision service made of one image: a SigLIP grid, or Qwen3-VL states, for `condition_prompt` or a file.

    Opaque: it holds the message as the service sent it. Made by `encode_images` or `load`, never by hand.
    """

    __slots__ = ("_parcel", "fingerprint", "image_sha256", "shape", "tokens")

    def __init__(
        self,
        parcel: Parcel[Any],
        *,
        fingerprint: VisionFingerprint,
        shape: tuple[int, ...],
        tokens: str,
        image_sha256: str,
    ) -> None:
        self._parcel = parcel
        self.fingerprint = fingerprint
        """What made it."""
        self.shape = shape
        """[rows, columns, width] of a grid, [tokens, width] of states."""
        self.tokens = tokens
        """Which tokens of the states were kept, "" for a grid."""
        self.image_sha256 = image_sha256
        """SHA-256 (hex) of the image file."""

    @property
    def engine(self) -> str:
        """Which engine made it: siglip or qwen3_vl."""
        return self.fingerprint.engine

    @property
    def parcel(self) -> Parcel[Any]:
        """An EncodeImagesResponse of this image alone, for the modules that speak the contract."""
        return self._parcel

    def save(self, path: Path | str) -> None:
        """Writes a file of this image alone (safetensors), whole or not at all. Raises OSError."""
        save([self], path)

    @classmethod
    def load(cls, path: Path | str) -> "ImageEmbeds":
        """Reads a file of one image. Raises OSError, InvalidArgument (VISION_FILE_INVALID, also where there are
        several) and PayloadCorrupt."""
        from zrelay_client._vision_messages import only

        return only(Path(path), load(path))

    def __repr__(self) -> str:
        return f"ImageEmbeds({self.engine}, {list(self.shape)}, image {self.image_sha256[:12]})"


@dataclass(frozen=True, slots=True)
class ImageScores:
    """How well texts describe one image, in the order of the texts: `probabilities` 0 to 1, each on its own (several
    may fit, or none), and `cosines` -1 to 1."""

    probabilities: tuple[float, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EmbedsStatistics:
    """Scale of embeddings: median RMS of a token, mean and standard deviation of all values, rows."""

    token_rms: float
    mean: float
    std: float
    tokens: int


@dataclass(frozen=True, slots=True)
class ConditionReport:
    """What conditioning did: the prompt `before` and `after`, the image's `states`; `outliers` are (dimension, ratio of
    deviations), at most 20 of `outlier_count`; `calibrated` says whether reference statistics of this encoder were
    there."""

    before: EmbedsStatistics
    states: EmbedsStatistics
    after: EmbedsStatistics
    outliers: tuple[tuple[int, float], ...]
    outlier_count: int
    calibrated: bool


@dataclass(frozen=True, slots=True)
class Conditioned:
    """A conditioned prompt, ready for `generate`, and what was done. `image_sha256` is "" for saved states."""

    embeds: Embeds
    report: ConditionReport
    image_sha256: str


def save(images: "list[ImageEmbeds]", path: Path | str) -> None:
    """Writes several images' embeddings to one file, whole or not at all. Raises OSError."""
    from zrelay_client._vision_messages import joined
    from zrelay_shared import vision_file

    vision_file.write(Path(path), joined(images))


def load(path: Path | str) -> list[ImageEmbeds]:
    """Reads a file of `save`. Raises OSError, InvalidArgument (VISION_FILE_INVALID) and PayloadCorrupt."""
    from zrelay_client._vision_messages import split
    from zrelay_shared import vision_file

    return split(vision_file.read(Path(path)))
