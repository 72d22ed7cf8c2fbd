"""What forwards and decodes cost on this device: calibrated at start, refined by every unit of work."""

from dataclasses import dataclass, field

from zrelay_generator.cost.fit import DurationFit

_LAYERS = 30
"""Main blocks of the published model, used until the loaded model is known."""


@dataclass(frozen=True, slots=True)
class Size:
    """Size of one forward, or the sum of several.

    Attributes:
        tokens: Tokens that pass through all blocks.
        squares: Sum over the segments of tokens squared, which the time of attention is proportional to.

    Both may be fractions: a segment that passes through half of the blocks counts half.
    """

    tokens: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.tokens + other.tokens, self.squares + other.squares)

    def __mul__(self, share: float) -> "Size":
        return Size(self.tokens * share, self.squares * share)


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Peak memory of work beside the weights, estimated from the shapes of the weights; upper bounds.

    Attributes:
        layers: Main blocks of the transformer.
        bytes_per_token: Bytes of a forward per token.
        bytes_per_pixel: Bytes of a decode per pixel.
    """

    layers: int = _LAYERS
    bytes_per_token: int = 0
    bytes_per_pixel: int = 0


@dataclass(frozen=True, slots=True)
class CostSnapshot:
    """The cost model's coefficients at one moment, for GetInfo; seconds are 0 until measured."""

    forward_base_s: float
    forward_s_per_token: float
    forward_s_per_token_squared: float
    decode_base_s: float
    decode_s_per_pixel: float
    bytes_per_token: int
    bytes_per_pixel: int


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a cost model has measured, one row for each size.

    Attributes:
        forwards: Tokens, squares (see `Size`) and seconds of forwards.
        decodes: Pixels and seconds of decodes.
    """

    forwards: tuple[tuple[float, ...], ...]
    decodes: tuple[tuple[float, ...], ...]


@dataclass(slots=True)
class CostModel:
    """Estimates the duration of forwards and decodes.

    A forward takes `base + a * tokens + b * squares` seconds, a decode `base + c * pixels + d * pixels**2` (a VAE has
    an attention layer). The device thread measures; any thread may read.
    """

    memory: MemoryModel = field(default_factory=MemoryModel)
    _forward: DurationFit = field(default_factory=lambda: DurationFit(main=1, terms=3))
    _decode: DurationFit = field(default_factory=lambda: DurationFit(main=1, terms=3))

    @property
    def measured(self) -> bool:
        """Whether both a forward and a decode were measured."""
        return self._forward.coefficients is not None and self._decode.coefficients is not None

    def observe_forward(self, size: Size, seconds: float) -> None:
        """Adds the measured duration of a forward."""
        self._forward.observe(_forward_terms(size), seconds)

    def observe_decode(self, pixels: int, seconds: float) -> None:
        """Adds the measured duration of the decode of an image of `pixels` pixels."""
        self._decode.observe(_decode_terms(pixels), seconds)

    def measurements(self) -> Measurements:
        """Returns the measurements, averaged for each size, for `add` of another cost model."""
        forwards = tuple((tokens, squares, seconds) for (_, tokens, squares), seconds in self._forward.averages)
        decodes = tuple((pixels, seconds) for (_, pixels, _), seconds in self._decode.averages)
        return Measurements(forwards, decodes)

    def add(self, measurements: Measurements) -> None:
        """Adds measurements that another cost model has made."""
        for tokens, squares, seconds in measurements.forwards:
            self.observe_forward(Size(tokens, squares), seconds)
        for pixels, seconds in measurements.decodes:
            self._decode.observe((1.0, pixels, pixels**2), seconds)

    def reset(self) -> None:
        """Forgets every measurement."""
        self._forward.reset()
        self._decode.reset()

    def forward_s(self, size: Size) -> float:
        """Returns the estimated seconds of one forward of this size, 0 until measured."""
        return self._forward.seconds(_forward_terms(size))

    def forwards_s(self, count: int, total: Size) -> float:
        """Returns the estimated seconds of `count` forwards whose sizes add up to `total`, 0 until measured."""
        return self._forward.seconds((float(count), total.tokens, total.squares))

    def decode_s(self, pixels: int) -> float:
        """Returns the estimated seconds of one decode, 0 until measured."""
        return self._decode.seconds(_decode_terms(pixels))

    def snapshot(self) -> CostSnapshot:
        """Returns the current coefficients."""
        base, token, square = self._forward.coefficients or (0.0, 0.0, 0.0)
        decode, pixel, _ = self._decode.coefficients or (0.0, 0.0, 0.0)
        memory = self.memory
        return CostSnapshot(base, token, square, decode, pixel, memory.bytes_per_token, memory.bytes_per_pixel)


def _forward_terms(size: Size) -> tuple[float, float, float]:
    return 1.0, size.tokens, size.squares


def _decode_terms(pixels: int) -> tuple[float, float, float]:
    return 1.0, float(pixels), float(pixels) ** 2
