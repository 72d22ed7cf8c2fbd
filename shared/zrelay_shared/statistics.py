"""Statistics of embeddings, for `zrelay calibrate` and `zrelay analyze`.

The only module here that needs numpy. Of the client, only `zrelay_client.calibration` and `zrelay_client.analysis`
import it. Where numpy is not installed, importing it raises FeatureMissing with the command that installs it.
"""

import math
from dataclasses import dataclass
from typing import Any

from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared.errors import FeatureMissing
from zrelay_shared.tensors import check
from zrelay_shared.wire import Parcel

try:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
except ModuleNotFoundError as error:
    raise FeatureMissing(
        "the statistics of embeddings need numpy, which is not installed: pip install 'zrelay[analysis]'",
        metadata={"missing": "numpy"},
    ) from error


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """The tokens of one embedding.

    Attributes:
        values: float32 [tokens, width].
        has_first: Whether row 0 is the first token of its sequence, which is an attention sink.
    """

    values: NDArray[np.float32]
    has_first: bool


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean and squared deviations of rows, per dimension.

    Attributes:
        count: Number of rows.
        mean: float64 [width]; 0 where there are no rows.
        squared_deviations: float64 [width], the sum over the rows of (value - mean)².
    """

    count: int
    mean: NDArray[np.float64]
    squared_deviations: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> "Moments":
        """Returns the moments of float32 [rows, width]."""
        wide = values.astype(np.float64)
        mean = wide.mean(axis=0) if len(wide) else np.zeros(wide.shape[1])
        return cls(len(wide), mean, np.square(wide - mean).sum(axis=0))

    @classmethod
    def none(cls, width: int) -> "Moments":
        """Returns the moments of no rows."""
        return cls(0, np.zeros(width), np.zeros(width))

    def merged(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of rows (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        between = np.square(difference) * (self.count * other.count / count)
        return Moments(count, mean, self.squared_deviations + other.squared_deviations + between)

    @property
    def std(self) -> NDArray[np.float64]:
        """The population standard deviation, float64 [width]. Raises ValueError where there are no rows."""
        if not self.count:
            raise ValueError("std: expected at least one row, got none")
        return np.sqrt(self.squared_deviations / self.count)


class EmbedsAccumulator:
    """Statistics over many embeddings of one width. The first tokens of sequences are kept apart from the rest.

    Attributes:
        first: Moments of the first tokens.
        rest: Moments of all other tokens.
    """

    def __init__(self, width: int) -> None:
        self.first, self.rest = Moments.none(width), Moments.none(width)
        self._width = width
        self._token_rms: list[NDArray[np.float64]] = []

    def add(self, rows: TokenRows) -> None:
        """Adds one embedding. Raises ValueError for another width, or for values that are not finite."""
        if rows.values.shape[1] != self._width:
            raise ValueError(f"width: expected {self._width} dimensions, got {rows.values.shape[1]}")
        if not np.isfinite(rows.values).all():
            raise ValueError("values: expected finite ones, got NaN or infinity")
        start = 1 if rows.has_first else 0
        self.first = self.first.merged(Moments.of(rows.values[:start]))
        self.rest = self.rest.merged(Moments.of(rows.values[start:]))
        self._token_rms.append(token_rms(rows.values[start:]))

    @property
    def all_tokens(self) -> Moments:
        """Moments of all tokens."""
        return self.rest.merged(self.first)

    @property
    def token_rms(self) -> NDArray[np.float64]:
        """Root mean square of each token except the first of each prompt, float64 [tokens], in the order of adding."""
        return np.concatenate([np.zeros(0), *self._token_rms])


def decode(dtype: str, data: memoryview) -> NDArray[np.float32]:
    """Returns little-endian values as float32 [count]. Every BF16 and F16 value is exact in float32.

    Args:
        dtype: BF16, F16 or F32 (safetensors' names).
        data: The bytes.

    Raises:
        ValueError: Another dtype.
    """
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F16", "F32"):
        return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
    raise ValueError(f"dtype: expected BF16, F16 or F32, got {dtype}")


def token_rows(parcel: Parcel[Any], tensor: Tensor, *, has_first: bool) -> TokenRows:
    """Returns the rows of a tensor [tokens, width] of a message. Raises as `tensors.check`."""
    view = check(tensor, parcel.bytes_of(tensor), field="embeddings", rank=2)
    return TokenRows(decode(view.dtype, view.data).reshape(view.shape), has_first)


def prompt_rows(parcel: Parcel[Any], embeds: PromptEmbeds) -> list[TokenRows]:
    """Returns the rows of each segment of a prompt. Raises as `tensors.check`.

    Args:
        parcel: The parcel whose message contains `embeds`.
        embeds: The prompt.
    """
    parts = enumerate(embeds.segments)
    return [token_rows(parcel, segment.prompt_embeds, has_first=index == 0) for index, segment in parts]


def token_rms(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the root mean square of each row of [tokens, width], float64 [tokens]."""
    wide = values.astype(np.float64)
    squares: NDArray[np.float64] = np.square(wide).mean(axis=1)
    return np.sqrt(squares)


def upper_median(values: ArrayLike) -> float:
    """Returns the middle value; of an even number of values the upper of the two in the middle.

    Raises:
        ValueError: There are no values.
    """
    flat = np.asarray(values, dtype=np.float64)
    if not flat.size:
        raise ValueError("values: expected at least one, got none")
    middle = flat.size // 2
    return float(np.partition(flat, middle)[middle])


def correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Returns Pearson's correlation of two sequences of the same length; 0 where one of them does not vary."""
    left, right = (np.asarray(values, dtype=np.float64) for values in (one, other))
    left, right = left - left.mean(), right - right.mean()
    scale = math.sqrt(float(left @ left) * float(right @ right))
    return float(np.clip(left @ right / scale, -1.0, 1.0)) if scale else 0.0


def overall_std(mean: ArrayLike, std: ArrayLike) -> float:
    """Returns the standard deviation of all values together, from mean and population deviation per dimension."""
    means, deviations = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    return math.sqrt(float(np.mean(np.square(deviations) + np.square(means - means.mean()))))
