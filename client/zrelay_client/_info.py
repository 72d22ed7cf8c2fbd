"""What services say of themselves, as frozen values."""

from dataclasses import dataclass, field

from zrelay_client._events import Sampling
from zrelay_shared.errors import ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model runs; memory in bytes, 0 where the platform does not tell."""

    kind: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_dtype: str


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits and runs."""

    waiting: int
    running: int
    max_waiting: int
    estimated_wait_s: float


@dataclass(frozen=True, slots=True)
class Feature:
    """One capability; using one that is not available is refused."""

    name: str
    available: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """What every service says. `device` is None until a model is loaded."""

    role: str
    endpoint: str
    version: str
    contract: str
    libraries: dict[str, str]
    ready: bool
    device: Device | None
    queue: Queue
    features: tuple[Feature, ...] = field(repr=False)
    max_message_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo(ServiceInfo):
    """An encoder. `fingerprint` is what a default request gets, None until the model is loaded."""

    fingerprint: EncoderFingerprint | None
    max_prompts: int
    max_prompt_chars: int
    text_limit: int
    text_limit_source: str
    templates: tuple[str, ...]
    loaded_blocks: int
    total_blocks: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a generator accepts: sides in pixels, `text_limit` in tokens."""

    size_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    max_images: int
    text_limit: int
    embeds_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorInfo(ServiceInfo):
    """A generator. `expected_encoder` is the one it belongs to, None until the model is loaded."""

    model_id: str
    transformer_digest: str
    vae_digest: str
    expected_encoder: EncoderFingerprint | None
    defaults: Sampling
    limits: Limits


@dataclass(frozen=True, slots=True)
class VisionEngine:
    """One engine of a vision service: `width` of its embeddings, `hidden_layer` of Qwen3-VL's states (0: a grid).
    `calibrations`: digests of the encoders whose reference statistics it holds."""

    name: str
    ready: bool
    model_id: str
    calibrations: tuple[str, ...] = ()
    width: int = 0
    hidden_layer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionInfo(ServiceInfo):
    """A vision service."""

    engines: tuple[VisionEngine, ...]
    max_images: int
    max_image_bytes: int
    max_image_pixels: int


@dataclass(frozen=True, slots=True)
class Info:
    """The first service of each role that a client has endpoints for; None where it has none."""

    encoder: EncoderInfo | None
    vision: VisionInfo | None
    generator: GeneratorInfo | None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One endpoint: what it says of itself, or the `error` that asking it ended in."""

    role: str
    endpoint: str
    info: EncoderInfo | VisionInfo | GeneratorInfo | None
    error: ZrelayError | None
