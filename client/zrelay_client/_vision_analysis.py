"""What stands out in embeddings: dimensions that deviate, and how far two spaces go together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zrelay_client._vision_numbers import Gatherer, Rows, correlation, median
from zrelay_client._vision_rows import prompt_rows, states_rows
from zrelay_client.embeds import Embeds
from zrelay_client.image_embeds import load
from zrelay_shared import embeds_file, reference_file, vision_file
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.reference_file import ReferenceSet
from zrelay_shared.safetensors_file import read as read_file
from zrelay_shared.safetensors_header import SafetensorsError

_LEAST_STD = 1e-6


@dataclass(frozen=True, slots=True)
class Sample:
    """Statistics of a file, per dimension and over all: `kind` is "reference", "prompt_embeds" or "states"."""

    name: str
    kind: str
    mean: Sequence[float]
    std: Sequence[float]
    token_rms: float
    tokens: int

    @property
    def whole_std(self) -> float:
        """Deviation of all values together."""
        centre = math.fsum(self.mean) / len(self.mean)
        squares = (std * std + (mean - centre) ** 2 for mean, std in zip(self.mean, self.std, strict=True))
        return math.sqrt(math.fsum(squares) / len(self.mean))


@dataclass(frozen=True, slots=True)
class Outlier:
    """A dimension: its deviation `std`, that of the reference, and the ratio of the two."""

    dimension: int
    ratio: float
    std: float
    reference: float


@dataclass(frozen=True, slots=True)
class Correlations:
    """How two samples go together over the dimensions: of the means, of the deviations, and of the deviations'
    logarithms, which a few massive dimensions do not decide."""

    mean: float
    std: float
    log_std: float


def open_sample(path: Path, *, with_first: bool = False) -> Sample:
    """Statistics of a file of `zrelay calibrate`, `zrelay encode` or `zrelay vision encode` (Qwen3-VL states).

    The first token of each sequence is left out unless it is asked for. Raises OSError, InvalidArgument (as the files'
    readers, and ANALYZE_FILE where it is none of them).
    """
    kind = _format(path)
    if kind == reference_file.FORMAT:
        return _of_set(path.name, reference_file.read(path), with_first)
    if kind == embeds_file.FORMAT:
        return _of_rows(path.name, "prompt_embeds", prompt_rows(Embeds.load(path)), with_first)
    if kind == vision_file.FORMAT:
        images = load(path)
        if any(image.engine != "qwen3_vl" for image in images):
            raise _unfit(path, "Qwen3-VL states", "SigLIP grids, which live in a space of their own")
        return _of_rows(path.name, "states", [rows for image in images for rows in states_rows(image)], with_first)
    raise _unfit(path, "a file of `zrelay calibrate`, `zrelay encode` or `zrelay vision encode`", "another")


def outliers(sample: Sample, reference: Sample | None, threshold: float) -> list[Outlier]:
    """Dimensions whose deviation is more than `threshold` times the reference's, worst first; without a reference, more
    than `threshold` times the median deviation of the sample itself. Raises InvalidArgument (WIDTHS_DIFFER)."""
    usual = [median(sample.std)] * len(sample.std) if reference is None else list(reference.std)
    if reference is not None:
        _same_width(sample, reference)
    found = [
        Outlier(dimension, std / max(other, _LEAST_STD), std, other)
        for dimension, (std, other) in enumerate(zip(sample.std, usual, strict=True))
    ]
    return sorted((one for one in found if one.ratio > threshold), key=lambda one: (-one.ratio, one.dimension))


def correlations(one: Sample, other: Sample) -> Correlations:
    """Over the dimensions. Raises InvalidArgument (WIDTHS_DIFFER)."""
    _same_width(one, other)
    logs = [[math.log(max(std, _LEAST_STD)) for std in sample.std] for sample in (one, other)]
    return Correlations(correlation(one.mean, other.mean), correlation(one.std, other.std), correlation(*logs))


def _of_set(name: str, found: ReferenceSet, with_first: bool) -> Sample:
    mean, std = (found.mean_with_first, found.std_with_first) if with_first else (found.mean, found.std)
    return Sample(name, "reference", mean, std, found.median_token_rms, found.tokens)


def _of_rows(name: str, kind: str, all_rows: Iterable[Rows], with_first: bool) -> Sample:
    rows = list(all_rows)
    gatherer = Gatherer(rows[0].width)
    for one in rows:
        if not one.has_first or one.count > 1 or with_first:
            gatherer.add(Rows(one.values, one.width, one.has_first and not with_first))
    gatherer.finish()
    if not gatherer.rest.count:
        raise InvalidArgument(
            f"{name}: expected more than the first token, got one: pass --with-first",
            field="file",
            reason="ANALYZE_FILE",
        )
    moments = gatherer.rest
    return Sample(name, kind, moments.mean, moments.std, median(gatherer.token_rms), moments.count)


def _same_width(one: Sample, other: Sample) -> None:
    if len(one.std) != len(other.std):
        raise InvalidArgument(
            f"{other.name}: expected {len(one.std)} dimensions, as {one.name} has, got {len(other.std)}: they come "
            "from models of different widths",
            field="file",
            reason="WIDTHS_DIFFER",
            metadata={"expected": len(one.std), "got": len(other.std)},
        )


def _format(path: Path) -> str:
    try:
        return read_file(path, max_bytes=MAX_MESSAGE_BYTES).metadata.get("format", "")
    except SafetensorsError as error:
        raise _unfit(path, "a safetensors file of zrelay", f"one that {error}") from error


def _unfit(path: Path, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"{path.name}: expected {expected}, got {got}", field="file", reason="ANALYZE_FILE", metadata={"got": got}
    )
