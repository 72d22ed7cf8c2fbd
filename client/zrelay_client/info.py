"""What services report about themselves (GetInfo), as frozen values."""

from dataclasses import dataclass, field

from zrelay_client.events import Sampling
from zrelay_shared.errors import ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a service. Memory is in bytes, 0 if the platform does not report it."""

    kind: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_dtype: str


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of a service: numbers of waiting and running calls or jobs, and the estimated wait in seconds."""

    waiting: int
    running: int
    max_waiting: int
    estimated_wait_s: float


@dataclass(frozen=True, slots=True)
class Feature:
    """A capability. A request that uses one that is not available is refused; `note` says why."""

    name: str
    available: bool
    note: str


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """How a service sees the connection of its caller. Times are in seconds since 1970-01-01 UTC.

    Attributes:
        security: "loopback", "insecure", "certificate" or "token".
        caller: Name under which the service knows the caller.
        permissions: What the caller may do.
        credentials_end: When the caller's certificate or token ends, 0 for never.
        server_certificate_ends: When the certificate of the service ends, 0 without TLS.
        server_time: The clock of the service.
    """

    security: str
    caller: str
    permissions: tuple[str, ...]
    credentials_end: int
    server_certificate_ends: int
    server_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """What every service reports. `device` is None until a model is loaded, `connection` for an earlier release."""

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
    connection: ConnectionReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo(ServiceInfo):
    """An encoder. `fingerprint` is that of a request with default options, None until the model is loaded."""

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
    """What a generator accepts. Sides are in pixels, `text_limit` is in tokens."""

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
    """A generator. `expected_encoder` is the encoder of its checkpoint, None until the model is loaded.

    `configuration_digest` is empty for a generator of an earlier release.
    """

    model_id: str
    transformer_digest: str
    vae_digest: str
    configuration_digest: str = ""
    expected_encoder: EncoderFingerprint | None
    defaults: Sampling
    limits: Limits


@dataclass(frozen=True, slots=True)
class VisionEngine:
    """An engine of a vision service.

    Attributes:
        calibrations: Digests of the encoders whose reference statistics it holds.
        width: Width of its embeddings.
        hidden_layer: Hidden layer of Qwen3-VL's states; 0 for a grid.
    """

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
    """The first service of each role; None for a role without endpoints."""

    encoder: EncoderInfo | None
    vision: VisionInfo | None
    generator: GeneratorInfo | None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The state of one endpoint: what its service reports, or the `error` of the call."""

    role: str
    endpoint: str
    info: EncoderInfo | VisionInfo | GeneratorInfo | None
    error: ZrelayError | None
