"""Image formats and the suffixes of their files."""

from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]
FORMAT_OF: dict[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIX_OF: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
