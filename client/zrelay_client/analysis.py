"""Analysis of embeddings: outlier dimensions, and the correlation between two sets of embeddings.

Needs numpy (`pip install 'zrelay[analysis]'`). `zrelay analyze` is the command.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zrelay_client.embeds import Embeds
from zrelay_client.image_embeds import ImageEmbeds, load
from zrelay_shared import embeds_file, reference_file, statistics, vision_file
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.reference_file import ReferenceSet
from zrelay_shared.safetensors_file import read as read_file
from zrelay_shared.safetensors_header import SafetensorsError
from zrelay_shared.statistics import EmbedsAccumulator, TokenRows

_LEAST_STD = 1e-6


@dataclass(frozen=True, slots=True)
class Sample:
    """Statistics of the embeddings of one file.

    Attributes:
        name: Name of the file.
        kind: "reference", "prompt_embeds" or "states".
        mean, std: Mean and population standard deviation per dimension.
        token_rms: Median over the tokens of the root mean square of a token.
        tokens: Number of tokens.
    """

    name: str
    kind: str
    mean: Sequence[float]
    std: Sequence[float]
    token_rms: float
    tokens: int

    @property
    def overall_std(self) -> float:
        """Standard deviation of all values together."""
        return statistics.overall_std(self.mean, self.std)


@dataclass(frozen=True, slots=True)
class Outlier:
    """A dimension whose deviation `std` is `ratio` times that of the `reference`."""

    dimension: int
    ratio: float
    std: float
    reference: float


@dataclass(frozen=True, slots=True)
class Correlations:
    """Pearson correlations of two samples over the dimensions.

    Attributes:
        mean: Of the means.
        std: Of the deviations. A few massive dimensions decide it.
        log_std: Of the logarithms of the deviations, in which all dimensions count.
    """

    mean: float
    std: float
    log_std: float


def open_sample(path: Path, *, with_first: bool = False) -> Sample:
    """Returns the statistics of a file of `zrelay calibrate`, `zrelay encode` or `zrelay vision encode`.

    Args:
        path: The file. One of `zrelay vision encode` must hold Qwen3-VL states.
        with_first: Whether to include the first token of each sequence, an attention sink.

    Raises:
        OSError: The file cannot be read.
        InvalidArgument: ANALYZE_FILE, it is another file; or as the readers of these files.
        PayloadCorrupt: Its bytes are damaged.
    """
    kind = _format(path)
    if kind == reference_file.FORMAT:
        return _of_reference(path.name, reference_file.read(path), with_first)
    if kind == embeds_file.FORMAT:
        parcel = Embeds.load(path).parcel
        rows = statistics.prompt_rows(parcel, parcel.message.prompt.prompt_embeds)
        return _of_rows(path.name, "prompt_embeds", rows, with_first)
    if kind == vision_file.FORMAT:
        images = load(path)
        if any(image.engine != "qwen3_vl" for image in images):
            raise _unfit(path, "Qwen3-VL states", "SigLIP grids, which live in a space of their own")
        return _of_rows(path.name, "states", [_states_rows(image) for image in images], with_first)
    raise _unfit(path, "a file of `zrelay calibrate`, `zrelay encode` or `zrelay vision encode`", "another")


def outliers(sample: Sample, reference: Sample | None, threshold: float) -> list[Outlier]:
    """Returns the dimensions whose deviation is more than `threshold` times the reference's, worst first.

    Args:
        sample: What is searched.
        reference: What it is compared with. None: the median deviation of the sample itself.
        threshold: The ratio of deviations above which a dimension is an outlier.

    Raises:
        InvalidArgument: WIDTHS_DIFFER.
    """
    if reference is None:
        usual: Sequence[float] = [statistics.upper_median(sample.std)] * len(sample.std)
    else:
        _same_width(sample, reference)
        usual = reference.std
    found = [
        Outlier(dimension, std / max(other, _LEAST_STD), std, other)
        for dimension, (std, other) in enumerate(zip(sample.std, usual, strict=True))
    ]
    return sorted((one for one in found if one.ratio > threshold), key=lambda one: (-one.ratio, one.dimension))


def correlations(one: Sample, other: Sample) -> Correlations:
    """Returns the correlations of two samples. Raises InvalidArgument (WIDTHS_DIFFER)."""
    _same_width(one, other)
    logs = [[math.log(max(std, _LEAST_STD)) for std in sample.std] for sample in (one, other)]
    return Correlations(
        mean=statistics.correlation(one.mean, other.mean),
        std=statistics.correlation(one.std, other.std),
        log_std=statistics.correlation(*logs),
    )


def _states_rows(image: ImageEmbeds) -> TokenRows:
    tensor = image.parcel.message.results[0].states.hidden_states
    # With other token selections the first token of the sequence was left out.
    return statistics.token_rows(image.parcel, tensor, has_first=image.tokens in ("full", "text_only"))


def _of_reference(name: str, reference: ReferenceSet, with_first: bool) -> Sample:
    mean, std = (reference.mean_with_first, reference.std_with_first) if with_first else (reference.mean, reference.std)
    return Sample(name, "reference", mean, std, reference.median_token_rms, reference.tokens)


def _of_rows(name: str, kind: str, all_rows: Sequence[TokenRows], with_first: bool) -> Sample:
    accumulator = EmbedsAccumulator(all_rows[0].values.shape[1])
    for rows in all_rows:
        accumulator.add(TokenRows(rows.values, rows.has_first and not with_first))
    moments = accumulator.rest
    if not moments.count:
        raise InvalidArgument(
            f"{name}: expected more than the first token, got one: pass --with-first",
            field="file",
            reason="ANALYZE_FILE",
        )
    median_rms = statistics.upper_median(accumulator.token_rms)
    return Sample(name, kind, moments.mean.tolist(), moments.std.tolist(), median_rms, moments.count)


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
