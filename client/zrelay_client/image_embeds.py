"""Embeddings of images, as a vision service returns them, and their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zrelay_shared import vision_fingerprint
from zrelay_shared.enums import word
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_shared.wire import Parcel


class ImageEmbeds:
    """The embedding of one image: a SigLIP2 grid, or hidden states of a Qwen3-VL.

    Opaque: it holds the message of the service. Made by `Client.encode_images` or `ImageEmbeds.load`.

    Attributes:
        fingerprint: The model that made it.
        shape: [rows, columns, width] of a grid; [tokens, width] of hidden states.
        tokens: Which tokens of the hidden states were kept; "" for a grid.
        image_sha256: SHA-256 (hex) of the image file.
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
        self.shape = shape
        self.tokens = tokens
        self.image_sha256 = image_sha256

    @property
    def engine(self) -> str:
        """The engine that made it: "siglip" or "qwen3_vl"."""
        return self.fingerprint.engine

    @property
    def parcel(self) -> Parcel[Any]:
        """An EncodeImagesResponse with this image alone, for the modules that build messages."""
        return self._parcel

    def save(self, path: Path | str) -> None:
        """Writes a safetensors file with this image alone, atomically. Raises OSError."""
        save([self], path)

    @classmethod
    def load(cls, path: Path | str) -> "ImageEmbeds":
        """Reads a file of one image.

        Raises:
            InvalidArgument: VISION_FILE_INVALID, the file is no such file, or holds several images.
            PayloadCorrupt: The bytes of the file are damaged.
            OSError: The file cannot be read.
        """
        images = load(path)
        if len(images) != 1:
            raise InvalidArgument(
                f"{Path(path).name}: expected one image, got {len(images)}: encode each image to a file of its own",
                field="images",
                reason="VISION_FILE_INVALID",
                metadata={"expected": 1, "got": len(images)},
            )
        return images[0]

    def __repr__(self) -> str:
        return f"ImageEmbeds({self.engine}, {list(self.shape)}, image {self.image_sha256[:12]})"


@dataclass(frozen=True, slots=True)
class ImageScores:
    """How well texts describe one image, in the order of the texts.

    Attributes:
        probabilities: 0 to 1, each text on its own: several may fit, or none.
        cosines: Cosine similarities, -1 to 1.
    """

    probabilities: tuple[float, ...]
    cosines: tuple[float, ...]


def save(images: Sequence[ImageEmbeds], path: Path | str) -> None:
    """Writes the embeddings of several images to one safetensors file, atomically. Raises OSError."""
    from zrelay_shared import vision_file  # its codecs are needed for files alone

    first = images[0].parcel.message
    parcel = Parcel(type(first)(), *(image.parcel for image in images))
    for image in images:
        parcel.message.results.add().CopyFrom(image.parcel.message.results[0])
    vision_file.write(Path(path), parcel)


def load(path: Path | str) -> list[ImageEmbeds]:
    """Reads a file of `save`.

    Raises:
        InvalidArgument: VISION_FILE_INVALID, FINGERPRINT_INVALID: the file is no such file.
        PayloadCorrupt: The bytes of the file are damaged.
        OSError: The file cannot be read.
    """
    from zrelay_shared import vision_file

    return split(vision_file.read(Path(path)))


def split(images: Parcel[Any]) -> list[ImageEmbeds]:
    """Returns each image of an EncodeImagesResponse on its own.

    Raises:
        InvalidArgument: FINGERPRINT_INVALID.
    """
    return [_one(images, result, f"results[{index}]") for index, result in enumerate(images.message.results)]


def _one(images: Parcel[Any], result: Any, path: str) -> ImageEmbeds:
    from zrelay_shared.vision_file import tensor_of

    parcel = Parcel(type(images.message)(), images)
    parcel.message.results.add().CopyFrom(result)
    kind, tensor = tensor_of(result)
    fingerprint = result.states.fingerprint if kind == "hidden_states" else result.siglip_embeds.fingerprint
    return ImageEmbeds(
        parcel,
        fingerprint=vision_fingerprint.from_message(fingerprint, path=f"{path}.fingerprint"),
        shape=tuple(tensor.shape),
        tokens=word(result.states, "tokens") if kind == "hidden_states" else "",
        image_sha256=result.image_sha256,
    )
