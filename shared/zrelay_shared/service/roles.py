"""The settings of the encoder, the vision service and the generator.

They are defined here so that the client can list, check and pass them on without the packages of the services.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zrelay_shared import paths
from zrelay_shared.limits import (
    DEFAULT_PORTS,
    DEVICES,
    DTYPES,
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_OPEN_CALLS,
    MAX_STEPS,
    MAX_TEXT_BYTES,
    MIB,
    PLAIN_DTYPES,
)
from zrelay_shared.service import settings
from zrelay_shared.service.settings import setting
from zrelay_shared.shares import CALLER_SHARE_PERCENT

LOG_LEVELS = ("debug", "info", "warning", "error")


_LISTEN: dict[str, Any] = {
    "group": "Server",
    "metavar": "HOST:PORT",
    "help": "Address to listen on; port 0 takes a free port.",
}


def _references_dir() -> Path:
    return paths.state_dir() / "references"


def _tokens_file() -> Path | None:
    return paths.credential("tokens.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Settings that every service has."""

    role: ClassVar[str] = ""

    listen: str = setting("127.0.0.1:0", **_LISTEN)
    address_file: Path | None = setting(
        None, group="Server", metavar="FILE", help="Write HOST:PORT to this file once the service listens."
    )
    log_level: str = setting("info", group="Server", choices=LOG_LEVELS, help="Least severe messages in the log.")
    grace_s: float = setting(
        30.0, group="Server", minimum=0, unit="seconds", help="Time that running calls get after SIGTERM."
    )
    tls: bool = setting(
        False,
        group="Security",
        help="Use TLS, and authenticate callers, on a loopback address too; on other addresses this is always so.",
    )
    insecure_listen: bool = setting(
        False,
        group="Security",
        help="Allow an address that other machines can reach in plaintext. Nothing is encrypted or authenticated.",
    )
    security: Path | None = setting(
        None,
        group="Security",
        computed=paths.security_dir,
        default_text="security/ in the state folder",
        help="Folder with the certificates, members and tokens that `zrelay pair` makes.",
    )
    token_listen: str | None = setting(
        None,
        group="Security",
        metavar="HOST:PORT",
        default_text="no such port",
        help="Second port, with TLS, for callers that send a bearer token; port 0 takes a free port.",
        example="0.0.0.0:7601",
    )
    tokens: Path | None = setting(
        None,
        group="Security",
        metavar="FILE",
        computed=_tokens_file,
        default_text="tokens.json in $CREDENTIALS_DIRECTORY or in the security folder",
        help="Records of the tokens that are accepted; they hold no tokens, but hashes.",
    )
    tls_certificate: Path | None = setting(
        None,
        group="Security",
        metavar="FILE",
        default_text="that of the security folder",
        help="Certificate of the service and its chain, in PEM, from another authority.",
    )
    tls_key: Path | None = setting(
        None, group="Security", metavar="FILE", default_text="that of the security folder", help="Its private key."
    )
    tls_ca: Path | None = setting(
        None,
        group="Security",
        metavar="FILE",
        default_text="that of the security folder",
        help="Authority whose clients are admitted; the common name of a certificate names its owner.",
    )
    tls_permissions: str = setting(
        "encode,vision,generate",
        group="Security",
        metavar="LIST",
        several=True,
        help="What the clients of --tls-ca may do: encode, vision, generate, administer, or all.",
    )
    health_listen: str | None = setting(
        None,
        group="Security",
        metavar="HOST:PORT",
        default_text="no such port",
        help="Further port, in plaintext, that answers health checks alone, for supervisors without a certificate.",
        example="0.0.0.0:7701",
    )
    max_calls: int = setting(
        MAX_OPEN_CALLS,
        group="Limits",
        minimum=8,
        help="Calls that may be open at once; one caller (an identity, or a network address without TLS) may have "
        "three quarters of what the others leave. A client has one open call for each job in flight.",
    )
    device: str = setting(
        "auto",
        group="Device",
        choices=DEVICES,
        help="Where the model runs; auto takes cuda, else mps, else cpu.",
    )
    dtype: str = setting(
        "auto",
        group="Device",
        choices=DTYPES,
        help="Data type of the computation; auto takes the fastest that fits into memory, and the log says why. "
        "bfloat16-weights computes in float32 with weights in bfloat16.",
    )
    memory_budget_bytes: int | None = setting(
        None,
        group="Device",
        key="memory_budget_mib",
        unit="MiB",
        scale=MIB,
        minimum=1,
        default_text="what is free, less a reserve",
        help="Memory of the device that the service may use; `zrelay up` divides what is free among its services.",
        example=16384,
    )
    memory_plan: bool = setting(
        True,
        group="Device",
        help="Refuse to start if the model does not fit into the memory; without it the kernel may end the service.",
    )
    threads: int | None = setting(
        None,
        group="Device",
        minimum=1,
        default_text="all cores but one",
        help="Torch threads on a CPU.",
        example=4,
    )
    caller_share: int = setting(
        CALLER_SHARE_PERCENT,
        group="Queue",
        minimum=1,
        maximum=100,
        unit="percent",
        help="Part of the queue that one caller (an identity, or a network address without TLS) may fill, of what the "
        "others leave; 100 if all callers are one.",
    )

    def __post_init__(self) -> None:
        settings.check(self, self.role)


_CACHE: dict[str, Any] = {
    "group": "Storage",
    "computed": paths.cache_dir,
    "default_text": "cache/ in the state folder",
    "help": "Folder for digests of weights, which speed up the next start; none keeps them nowhere.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(ServiceConfig):
    """Settings of one encoder process. The limits are reported by GetInfo."""

    role: ClassVar[str] = "encoder"

    model: Path = setting(
        group="Model", metavar="DIR", help="Z-Image pipeline folder, or a Qwen3 folder with its tokenizer."
    )
    hidden_layer: int = setting(
        -2,
        group="Model",
        maximum=-1,
        help="Layer of a request that names none; only the blocks it needs are loaded. -1 is after the final norm.",
    )
    listen: str = setting(f"127.0.0.1:{DEFAULT_PORTS['encoder']}", **_LISTEN)
    max_waiting: int = setting(64, group="Queue", minimum=1, help="Calls that may wait for the device.")
    batch_tokens: int = setting(
        4096, group="Queue", minimum=1, help="Tokens in one forward; a single longer prompt runs alone."
    )
    max_prompts: int = setting(64, group="Limits", minimum=1, maximum=MAX_ITEMS, help="Prompts in one call.")
    max_prompt_chars: int = setting(
        65_536, group="Limits", minimum=1, maximum=MAX_TEXT_BYTES // 4, help="Characters in one prompt."
    )
    max_text_limit: int = setting(
        4096, group="Limits", minimum=1, help="Largest text_limit, in tokens, that a request may ask for."
    )
    cache: Path | None = setting(None, **_CACHE)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig(ServiceConfig):
    """Settings of one vision process. The limits are reported by GetInfo.

    `model` names a folder that holds several checkpoints; the service uses `qwen3_vl` and `siglip`, which the start of
    the process fills in from it. Without any engine the service conditions prompts with saved states only.
    """

    role: ClassVar[str] = "vision"

    dtype: str = setting(
        "auto",
        group="Device",
        choices=PLAIN_DTYPES,
        help="Data type of the computation; auto takes the fastest that fits into memory, and the log says why.",
    )

    qwen3_vl: Path | None = setting(
        None, group="Model", help="Qwen3-VL checkpoint, for states of images and for conditioning."
    )
    siglip: Path | None = setting(None, group="Model", help="SigLIP2 checkpoint, for Omni grids and scores.")
    model: Path | None = setting(
        None, group="Model", help="Folder that holds qwen3_vl/ or siglip/ or both, or is one of the two."
    )
    reference_stats: Path | None = setting(
        None,
        group="Model",
        flags=("--reference-stats", "--references"),
        computed=_references_dir,
        default_text="references/ in the state folder",
        help="Folder of `zrelay calibrate`, for per_dim, hybrid and outlier masks.",
    )
    hidden_layer: int | None = setting(
        None,
        group="Model",
        maximum=-1,
        default_text="the checkpoint's zrelay.json, else -6",
        example=-6,
        help="Qwen3-VL layer of a request that names none; only the blocks that it needs are loaded.",
    )
    listen: str = setting(f"127.0.0.1:{DEFAULT_PORTS['vision']}", **_LISTEN)
    max_waiting: int = setting(16, group="Queue", minimum=1, help="Calls that may wait for the device.")
    max_images: int = setting(16, group="Limits", minimum=1, maximum=MAX_ITEMS, help="Images in one call.")
    max_image_bytes: int = setting(
        48 * MIB,
        group="Limits",
        key="max_image_mib",
        unit="MiB",
        scale=MIB,
        minimum=1,
        help="Size of one image file.",
    )
    max_image_pixels: int = setting(50_000_000, group="Limits", minimum=1, help="Pixels of one image file.")
    max_area: int = setting(
        1024 * 1024,
        group="Limits",
        minimum=1,
        help="Pixels of one image that Qwen3-VL sees; larger images are scaled down.",
    )
    max_texts: int = setting(64, group="Limits", minimum=1, maximum=MAX_ITEMS, help="Texts in one ScoreImages call.")
    max_text_chars: int = setting(
        8192, group="Limits", minimum=1, maximum=MAX_TEXT_BYTES // 4, help="Characters in one such text."
    )
    max_reply_bytes: int = setting(
        MAX_MESSAGE_BYTES - MIB,
        group="Limits",
        key="max_reply_mib",
        unit="MiB",
        scale=MIB,
        minimum=1,
        maximum=(MAX_MESSAGE_BYTES - MIB) / MIB,
        help="Size of the embeddings in one reply.",
    )
    image_cache_bytes: int = setting(
        256 * MIB,
        group="Storage",
        key="image_cache_mib",
        unit="MiB",
        scale=MIB,
        minimum=0,
        help="Memory for uploaded image files, which later calls can name by their digest.",
    )
    state_cache_bytes: int = setting(
        512 * MIB,
        group="Storage",
        key="state_cache_mib",
        unit="MiB",
        scale=MIB,
        minimum=0,
        help="Memory for Qwen3-VL states; an image of one megapixel takes 140 MiB with Qwen3-VL-4B.",
    )
    cache: Path | None = setting(None, **_CACHE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig(ServiceConfig):
    """Settings of one generator process. The limits are reported by GetInfo."""

    role: ClassVar[str] = "generator"

    model: Path = setting(group="Model", metavar="DIR", help="Z-Image pipeline folder.")
    listen: str = setting(f"127.0.0.1:{DEFAULT_PORTS['generator']}", **_LISTEN)
    max_waiting: int = setting(
        10_000, group="Queue", minimum=1, help="Requests of a priority class and of more urgent ones that may wait."
    )
    max_wait_s: float = setting(
        600.0,
        group="Queue",
        minimum=0,
        unit="seconds",
        help="Estimated work ahead of a new request, above which it is refused.",
    )
    max_waiting_bytes: int = setting(
        4 << 30,
        group="Queue",
        key="max_waiting_mib",
        unit="MiB",
        scale=MIB,
        minimum=0,
        help="Disk space for the inputs of waiting requests.",
    )
    max_caller_waiting: int | None = setting(
        None,
        group="Queue",
        minimum=1,
        default_text="no limit",
        help="Requests of one caller (an identity, or a network address without TLS) that may wait.",
        example=100,
    )
    lease_s: float = setting(
        30.0,
        group="Queue",
        minimum=0,
        unit="seconds",
        help="Time that a job runs on after its client's stream is lost, unless it was submitted detached.",
    )
    tick_tokens: int = setting(
        16384, group="Queue", minimum=1, help="Tokens in one forward of the transformer; a single image may exceed it."
    )
    deterministic: bool = setting(
        False,
        group="Queue",
        help="Run jobs one at a time, so that an image does not depend on other jobs; slower.",
    )
    max_side: int = setting(4096, group="Limits", minimum=1, help="Largest side of an image in pixels.")
    max_pixels: int = setting(4096 * 4096, group="Limits", minimum=1, help="Largest area of an image in pixels.")
    min_side: int = setting(64, group="Limits", minimum=1, help="Smallest side of an image in pixels.")
    max_steps: int = setting(100, group="Limits", minimum=1, maximum=MAX_STEPS, help="Largest num_inference_steps.")
    max_images: int = setting(16, group="Limits", minimum=1, help="Largest num_images of one request.")
    state: Path | None = setting(
        None,
        group="Storage",
        computed=paths.state_dir,
        default_text="$ZRELAY_STATE, $STATE_DIRECTORY or ~/.local/state/zrelay",
        help="Folder where jobs are kept; none keeps them in memory until the process ends.",
    )
    keep_results_s: float = setting(
        24 * 3600.0,
        group="Storage",
        key="keep_results_h",
        unit="hours",
        scale=3600.0,
        minimum=0,
        help="Time that finished jobs are kept.",
    )
    keep_results: int = setting(10_000, group="Storage", minimum=0, help="Finished jobs that are kept, newest first.")
    keep_results_bytes: int = setting(
        2 << 30,
        group="Storage",
        key="keep_results_mib",
        unit="MiB",
        scale=MIB,
        minimum=0,
        help="Disk space for finished images.",
    )
    keep_contents_bytes: int = setting(
        2 << 30,
        group="Storage",
        key="keep_contents_mib",
        unit="MiB",
        scale=MIB,
        minimum=0,
        help="Disk space for uploaded embeddings and images that no waiting job needs.",
    )

    def __post_init__(self) -> None:
        settings.check(self, self.role)
        if self.min_side > self.max_side:
            raise ValueError(f"min_side: expected at most max_side ({self.max_side}), got {self.min_side}")


SERVICE_CONFIGS: dict[str, type[ServiceConfig]] = {
    "encoder": EncoderConfig,
    "vision": VisionConfig,
    "generator": GeneratorConfig,
}
"""Role -> settings class."""
