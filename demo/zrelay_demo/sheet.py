"""Lay pictures out as one contact sheet; a red frame marks one that is not all right."""

from PIL import Image, ImageDraw

from .checker import Verdict

_COLUMNS, _TILE, _GAP = 12, 96, 6


def contact_sheet(pictures: list[Image.Image], verdicts: list[Verdict]) -> Image.Image:
    """Twelve pictures in a row, each 96 pixels wide, on a palette that keeps the file small."""
    rows = -(-len(pictures) // _COLUMNS)
    pitch = _TILE + _GAP
    sheet = Image.new("RGB", (_COLUMNS * pitch + _GAP, rows * pitch + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, verdict) in enumerate(zip(pictures, verdicts, strict=True)):
        left, top = _GAP + index % _COLUMNS * pitch, _GAP + index // _COLUMNS * pitch
        frame = (left - 3, top - 3, left + _TILE + 2, top + _TILE + 2)
        pen.rectangle(frame, fill="#bbbbbb" if verdict.all_right else "#dd0000")
        sheet.paste(picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, top))
    return sheet.quantize(128)
