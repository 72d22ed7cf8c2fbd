"""Arranges images on a contact sheet; a red border marks an image with a wrong attribute."""

from PIL import Image, ImageDraw

from .checker import CheckResult

_COLUMNS, _TILE, _GAP = 12, 96, 6


def contact_sheet(pictures: list[Image.Image], checks: list[CheckResult]) -> Image.Image:
    """Returns a sheet with twelve images per row, each 96 pixels wide, with 128 colours to keep the file small."""
    rows = -(-len(pictures) // _COLUMNS)
    pitch = _TILE + _GAP
    sheet = Image.new("RGB", (_COLUMNS * pitch + _GAP, rows * pitch + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, result) in enumerate(zip(pictures, checks, strict=True)):
        left, top = _GAP + index % _COLUMNS * pitch, _GAP + index // _COLUMNS * pitch
        frame = (left - 3, top - 3, left + _TILE + 2, top + _TILE + 2)
        pen.rectangle(frame, fill="#bbbbbb" if result.all_right else "#dd0000")
        sheet.paste(picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, top))
    return sheet.quantize(128)
