"""What a Z-Image Omni picture is painted after, ready to be sent: image files and their SigLIP grids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zrelay_client._contents import Content, content_of, content_of_file
from zrelay_client._vision_images import ImageFile

if TYPE_CHECKING:
    from zrelay_client._vision_embeds import ImageEmbeds

_IMAGES, _GRIDS = "omni.images.", "omni.grids."


@dataclass(frozen=True, slots=True)
class OmniImages:
    """Files, and the grid of each in the same order."""

    files: tuple[ImageFile, ...]
    grids: "tuple[ImageEmbeds, ...]"

    @property
    def contents(self) -> dict[str, Content]:
        """Files and grids, as content to be sent once and then named."""
        files = {f"{_IMAGES}{index}": content_of_file(file.data) for index, file in enumerate(self.files)}
        parcels = [grid.parcel for grid in self.grids]
        return files | {
            f"{_GRIDS}{index}": content_of(parcel, parcel.message.results[0].siglip_embeds)
            for index, parcel in enumerate(parcels)
        }

    @property
    def size_bytes(self) -> int:
        """Of the files together."""
        return sum(len(file.data) for file in self.files)


def is_grid(name: str) -> bool:
    """Whether a content of that name is a grid."""
    return name.startswith(_GRIDS)


def image_index(name: str) -> int | None:
    """Which image a content of that name is; None for what is none."""
    return int(name.removeprefix(_IMAGES)) if name.startswith(_IMAGES) else None
