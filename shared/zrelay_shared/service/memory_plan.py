"""Plans the memory of a service before its model is loaded, and chooses the dtype that fits. Loads no torch.

The bytes of the weights come from the headers of the safetensors files, those of the work from the checkpoint's
configuration and the service's limits, and what is free from the device. A service that does not fit is refused with
these numbers, instead of being ended by the kernel without a message.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zrelay_shared.checkpoint_files import find_weights, join, read_json
from zrelay_shared.checkpoints import ComponentFolder, defaults, open_pipeline, open_text_encoder
from zrelay_shared.errors import FailedPrecondition, OutOfMemory
from zrelay_shared.layers import layer_plan
from zrelay_shared.limits import BFLOAT16_WEIGHTS, MIB
from zrelay_shared.safetensors_header import TensorEntry, read_header
from zrelay_shared.service.roles import (
    EncoderConfig,
    GeneratorConfig,
    ServiceConfig,
    VisionConfig,
)
from zrelay_shared.weight_files import canonical_name

OVERHEAD_BYTES = 512 * MIB
"""Memory of a process besides weights and work: Python, torch and the libraries of models take about 400 MiB, the
allocator keeps some."""
RESERVE_SHARE, LARGEST_RESERVE = 0.05, 1536 * MIB
"""Part of the device's memory that is left to other programs and to the system, and its upper bound."""
CONVERTED_BYTES = 64 * MIB
"""Rows of a layer in float32 that `bfloat16-weights` holds at a time, and their products."""
_GIB = 1 << 30
_FLOATS = ("F64", "F32", "F16", "BF16")
_BLOCKS = ("layers.", "noise_refiner.", "context_refiner.", "siglip_refiner.")
"""Prefixes of the transformer's blocks, whose matrices `bfloat16-weights` keeps in bfloat16."""
_TOKEN_PIXELS = 16 * 16


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """The properties of a device that decide a memory plan.

    Attributes:
        kind: cuda, mps or cpu.
        bfloat16: Whether it computes in bfloat16 at full speed.
        total_bytes, free_bytes: Its memory; the total is 0 where the platform does not report it.
        limited_by: What sets the free bytes.
    """

    kind: str
    bfloat16: bool
    total_bytes: int
    free_bytes: int
    limited_by: str = "free memory"

    @property
    def reserve_bytes(self) -> int:
        """Bytes that are left to other programs."""
        return min(LARGEST_RESERVE, int(self.total_bytes * RESERVE_SHARE))

    @property
    def usable_bytes(self) -> int:
        """Bytes that services may use."""
        return max(0, self.free_bytes - self.reserve_bytes)


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a checkpoint that a service loads, counted in values.

    Attributes:
        matrices: Values that `bfloat16-weights` keeps in bfloat16.
        others: All other values.
        stored: Dtypes of the tensors whose dtype decides, in the order of the files.
    """

    matrices: int = 0
    others: int = 0
    stored: tuple[str, ...] = ()

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(self.matrices + other.matrices, self.others + other.others, self.stored or other.stored)

    @property
    def first(self) -> str:
        """The dtype of the first float tensor, BF16 if all are quantised."""
        return next((dtype for dtype in self.stored if dtype in _FLOATS), "BF16")

    def bytes_in(self, dtype: str) -> int:
        """Returns their bytes in a dtype of the settings."""
        if dtype == BFLOAT16_WEIGHTS:
            return self.matrices * 2 + self.others * 4 + CONVERTED_BYTES
        return (self.matrices + self.others) * itemsize(dtype)


@dataclass(frozen=True, slots=True)
class ServiceNeeds:
    """What a service needs.

    Attributes:
        role: The service.
        model: The weights whose dtype is chosen.
        work: Bytes per value -> bytes of the work that the service should be able to do.
        least_work: The same for the smallest work that makes it useful.
        work_name, least_name: What these are, for messages.
        dtype: The requested dtype, or "auto".
        remedy: Settings that lower the need.
        budget_bytes: Memory that the service may plan with; None for what is free.
        bytes_per_token: Bytes per value -> bytes of one token of a generator's forward, empty for other services.
        tick_tokens: The generator's setting, 0 for other services.
    """

    role: str
    model: Weights
    work: Mapping[int, int]
    least_work: Mapping[int, int]
    work_name: str
    least_name: str
    dtype: str
    remedy: str
    budget_bytes: int | None = None
    bytes_per_token: Mapping[int, int] | None = None
    tick_tokens: int = 0


@dataclass(frozen=True, slots=True)
class MemoryOption:
    """The memory of a service in one dtype, in bytes: weights, work, and everything with the process itself."""

    dtype: str
    weights_bytes: int
    work_bytes: int
    least_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that the service needs."""
        return self.weights_bytes + self.work_bytes + OVERHEAD_BYTES

    @property
    def least_total_bytes(self) -> int:
        """Bytes of weights, process and the smallest work that the service must be able to do."""
        return self.weights_bytes + self.least_bytes + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The dtype of a service, with the numbers that led to it.

    Attributes:
        role: The service.
        chosen: The chosen dtype.
        reason: Why, in one sentence.
        options: All dtypes that were considered.
        device: The device.
        usable_bytes: Bytes that the service may use; they mean nothing where the device's total is 0.
        tick_tokens: Tokens of a forward that fit, at most the generator's setting; 0 for other services.
        work_name: The work that was planned for.
    """

    role: str
    chosen: MemoryOption
    reason: str
    options: tuple[MemoryOption, ...]
    device: PlannedDevice
    usable_bytes: int
    tick_tokens: int
    work_name: str

    @property
    def dtype(self) -> str:
        """The chosen dtype, as in the settings."""
        return self.chosen.dtype

    @property
    def room_bytes(self) -> int:
        """Bytes that are left for work when the weights are loaded."""
        return max(0, self.usable_bytes - self.chosen.weights_bytes - OVERHEAD_BYTES)


def itemsize(dtype: str) -> int:
    """Returns the bytes of one value of the computation in a dtype of the settings."""
    return 4 if dtype in ("float32", BFLOAT16_WEIGHTS) else 2


def transformer_bytes_per_token(dim: int, hidden: int, itemsize: int) -> int:
    """Returns the peak bytes of one token in a transformer's block, from the tensors that exist at the same time.

    Args:
        dim: Width of the block.
        hidden: Width of its MLP.
        itemsize: Bytes of one value.
    """
    # Residual, normed, query, key, value, attended; four norms if timesteps differ; float32 halves of the rotation.
    attention = 10 * dim * itemsize + 8 * dim
    return max(attention, (6 * dim + 3 * hidden) * itemsize)


def vae_bytes_per_pixel(widths: Sequence[int], itemsize: int) -> int:
    """Returns the peak bytes of decoding per pixel, an estimated upper bound.

    It counts six activations of the second-narrowest width at full size: before and after a norm, the result of a
    convolution and its workspace.
    """
    return 6 * widths[min(1, len(widths) - 1)] * itemsize


def plan(needs: ServiceNeeds, device: PlannedDevice, *, check: bool = True) -> MemoryPlan:
    """Chooses the dtype of a service: the fastest of those that fit.

    Args:
        needs: What the service needs.
        device: Where it computes.
        check: Whether a dtype must fit.

    Raises:
        OutOfMemory: MEMORY_PLAN, none fits, or the requested one does not.
        FailedPrecondition: DTYPE_UNSUPPORTED, bfloat16-weights is requested for weights of another dtype.
    """
    if needs.dtype == BFLOAT16_WEIGHTS and not _keeps_bfloat16(needs.model):
        raise FailedPrecondition(
            f"dtype: {BFLOAT16_WEIGHTS} expects a checkpoint whose weights are all BF16, got "
            f"{', '.join(needs.model.stored)}; use --dtype auto",
            reason="DTYPE_UNSUPPORTED",
            metadata={"expected": "BF16", "got": ",".join(needs.model.stored)},
        )
    considered = [needs.dtype] if needs.dtype != "auto" else _by_speed(needs.model, device)
    options = {dtype: _option(needs, dtype) for dtype in dict.fromkeys([*considered, *_possible(needs.model)])}
    usable = _usable(needs, device)
    known = check and (device.total_bytes > 0 or needs.budget_bytes is not None)
    first = options[considered[0]]
    chosen = next((options[d] for d in considered if not known or options[d].total_bytes <= usable), None)
    note = ""
    if chosen is None:
        small = [options[d] for d in considered if options[d].least_total_bytes <= usable]
        if not small:
            raise _refused(needs, device, [options[d] for d in considered], list(options.values()), usable)
        chosen = min(small, key=lambda option: option.weights_bytes)
        note = f"; {needs.work_name} does not fit and is refused, {needs.least_name} fits"
    why = "as requested" if needs.dtype != "auto" else _why(needs.model, device, first.dtype)
    if chosen is not first:
        why = (
            f"{why}, but {first.dtype} needs {_gib(first.total_bytes)} of the {_gib(usable)} GiB that may be used, "
            f"and {chosen.dtype} needs {_gib(chosen.total_bytes)}"
        )
    elif known:
        why = f"{why}, and it needs {_gib(chosen.total_bytes)} of the {_gib(usable)} GiB that may be used"
    tokens = needs.tick_tokens
    made = MemoryPlan(
        needs.role, chosen, f"{why}{note}", tuple(options.values()), device, usable, tokens, needs.work_name
    )
    if known and needs.bytes_per_token is not None:
        fits = made.room_bytes // max(1, needs.bytes_per_token[itemsize(chosen.dtype)])
        made = _with_tokens(made, max(1, min(tokens, fits)))
    return made


def plan_together(needs: Sequence[ServiceNeeds], device: PlannedDevice) -> dict[str, int]:
    """Divides the memory of one device among services that run on it at the same time.

    Each begins with the fastest dtype. While they do not fit together, the service whose next dtype saves most takes
    it. What remains goes to the generator, whose images vary in size.

    Returns:
        Role -> bytes that the service may plan with; empty if the device's memory is not known.

    Raises:
        OutOfMemory: MEMORY_PLAN, they do not fit together in any dtypes.
    """
    if not device.total_bytes:
        return {}
    steps = {one.role: _steps(one, device) for one in needs}
    while (total := sum(sizes[0] for sizes in steps.values())) > device.usable_bytes:
        savings = {role: sizes[0] - sizes[1] for role, sizes in steps.items() if len(sizes) > 1}
        if not savings:
            parts = ", ".join(f"{role} {_gib(sizes[0])}" for role, sizes in steps.items())
            chosen = [f"{one.role} --dtype {one.dtype}" for one in needs if one.dtype != "auto"]
            dtypes = "with the requested data types" if chosen else "even in the smallest data types"
            remedy = "use --dtype auto, " if chosen else ""
            raise OutOfMemory(
                f"the services need {_gib(total)} GiB together {dtypes} ({parts}), and "
                f"{_gib(device.usable_bytes)} may be used ({_free(device)}); {remedy}run some of them on another "
                "machine, end other programs, or start with --no-memory-plan",
                reason="MEMORY_PLAN",
                metadata={"needed_bytes": total, "usable_bytes": device.usable_bytes},
            )
        steps[max(savings, key=lambda role: savings[role])].pop(0)
    budgets = {role: sizes[0] for role, sizes in steps.items()}
    rest = device.usable_bytes - sum(budgets.values())
    budgets["generator" if "generator" in budgets else next(iter(budgets))] += rest
    return budgets


def needs_of(config: ServiceConfig) -> ServiceNeeds:
    """Returns what a service with these settings needs, from the headers of its checkpoint.

    Raises:
        CheckpointError: The folder is incomplete or damaged.
    """
    if isinstance(config, EncoderConfig):
        return _encoder(config)
    if isinstance(config, GeneratorConfig):
        return _generator(config)
    if isinstance(config, VisionConfig):
        return _vision(config)
    raise ValueError(f"config: expected the settings of a service, got {type(config).__name__}")


def _encoder(config: EncoderConfig) -> ServiceNeeds:
    component = open_text_encoder(config.model).component
    total = _number(component.config, "num_hidden_layers", 36)
    layer = min(-1, max(-total, config.hidden_layer))  # loading refuses another
    loaded = layer_plan(total, layer)

    def wanted(name: str) -> bool:
        block = _block_of(name, "layers.")
        return block < loaded.blocks if block is not None else loaded.final_norm or not name.startswith("norm.")

    def counted(entry: TensorEntry) -> bool:
        name = canonical_name(entry.name)
        return name is not None and wanted(name)

    hidden = _number(component.config, "hidden_size", 2560)
    mlp = _number(component.config, "intermediate_size", 4 * hidden)
    tokens = max(config.batch_tokens, config.max_text_limit)
    work = {size: tokens * (8 * hidden + 3 * mlp) * size for size in (2, 4)}
    name = f"a batch of {tokens} tokens"
    return ServiceNeeds(
        role="encoder",
        model=_weights(component, counted, lambda entry: len(entry.shape) == 2),
        work=work,
        least_work=work,
        work_name=name,
        least_name=name,
        dtype=config.dtype,
        remedy="lower --batch-tokens and --max-text-limit",
        budget_bytes=config.memory_budget_bytes,
    )


def _generator(config: GeneratorConfig) -> ServiceNeeds:
    pipeline = open_pipeline(config.model)
    transformer, vae = pipeline.component("transformer"), pipeline.component("vae")
    dim = _number(transformer.config, "dim", 3840)
    hidden = int(dim / 3 * 8)  # as in ZImageTransformerBlock
    widths = vae.config.get("block_out_channels")
    channels = [w for w in widths if isinstance(w, int)] if isinstance(widths, list) else []
    usual = defaults(config.model)
    side = config.min_side

    def work(width: int, height: int) -> dict[int, int]:
        pixels = width * height
        tokens = pixels // _TOKEN_PIXELS + usual.max_sequence_length
        return {
            size: max(
                tokens * transformer_bytes_per_token(dim, hidden, size),
                pixels * vae_bytes_per_pixel(channels or [128, 256], size),
            )
            for size in (2, 4)
        }

    def matrix(entry: TensorEntry) -> bool:
        return len(entry.shape) == 2 and entry.name.startswith(_BLOCKS)

    return ServiceNeeds(
        role="generator",
        model=_weights(transformer, lambda _: True, matrix) + _weights(vae, lambda _: True, lambda _: False),
        work=work(usual.width, usual.height),
        least_work=work(side, side),
        work_name=f"an image of {usual.width} x {usual.height}",
        least_name=f"one of {side} x {side}",
        dtype=config.dtype,
        remedy="choose smaller default sizes in zrelay.json",
        budget_bytes=config.memory_budget_bytes,
        bytes_per_token={size: transformer_bytes_per_token(dim, hidden, size) for size in (2, 4)},
        tick_tokens=config.tick_tokens,
    )


def _vision(config: VisionConfig) -> ServiceNeeds:
    model, siglip, work = (
        Weights(),
        Weights(),
        dict.fromkeys((2, 4), config.image_cache_bytes + config.state_cache_bytes),
    )
    if config.siglip is not None:
        inside = "siglip" if (config.siglip / "siglip").is_dir() else ""
        settings = read_json(config.siglip, join(inside, "config.json"))
        siglip = _counted(find_weights(config.siglip, inside, "model", settings)[0])  # texts load the text tower later
        work = {size: bytes + 64 * MIB * size for size, bytes in work.items()}
    if config.qwen3_vl is not None:
        settings = read_json(config.qwen3_vl, "config.json")
        files, _ = find_weights(config.qwen3_vl, "", "model", settings)
        text = settings.get("text_config")
        language: Mapping[str, object] = text if isinstance(text, dict) else {}
        own = read_json(config.qwen3_vl, "zrelay.json") if (config.qwen3_vl / "zrelay.json").is_file() else {}
        layer = config.hidden_layer if config.hidden_layer is not None else _number(own, "hidden_layer", -6)
        total = _number(language, "num_hidden_layers", 36)
        loaded = layer_plan(total, min(-1, max(-total, layer)))

        def counted(entry: TensorEntry) -> bool:
            block = _block_of(canonical_name(entry.name) or "", "language_model.layers.")
            return canonical_name(entry.name) is not None and (block is None or block < loaded.blocks)

        model = _counted(files, counted)
        hidden = _number(language, "hidden_size", 2560)
        mlp = _number(language, "intermediate_size", 4 * hidden)
        tokens = config.max_area // (32 * 32) + 64
        patches = 4 * tokens
        per_token = {size: (8 * hidden + 3 * mlp) * size * tokens + patches * 16 * 1024 * size for size in (2, 4)}
        work = {size: bytes + per_token[size] for size, bytes in work.items()}
    name = f"an image of {config.max_area} pixels, and the caches"
    return ServiceNeeds(
        role="vision",
        model=model + siglip,
        work=work,
        least_work=work,
        work_name=name,
        least_name=name,
        dtype=config.dtype,
        remedy="lower --max-area, --state-cache-mib and --image-cache-mib",
        budget_bytes=config.memory_budget_bytes,
    )


def _weights(
    component: ComponentFolder, counted: Callable[[TensorEntry], bool], matrix: Callable[[TensorEntry], bool]
) -> Weights:
    return _counted(component.weights, counted, matrix)


def _counted(
    files: Sequence[Path],
    counted: Callable[[TensorEntry], bool] = lambda _: True,
    matrix: Callable[[TensorEntry], bool] = lambda _: False,
) -> Weights:
    matrices = others = 0
    stored: dict[str, None] = {}
    for file in files:
        for entry in read_header(file):
            if not counted(entry):
                continue
            stored.setdefault(entry.dtype)
            values = math.prod(entry.shape)
            if matrix(entry):
                matrices += values
            else:
                others += values
    return Weights(matrices, others, tuple(stored))


def _by_speed(model: Weights, device: PlannedDevice) -> list[str]:
    """Returns the dtypes among which `--dtype auto` chooses, the fastest first."""
    if device.bfloat16 and not (device.kind == "cpu" and model.first == "F32"):
        return ["bfloat16"]
    return _possible(model)


def _possible(model: Weights) -> list[str]:
    """Returns the dtypes in which a model can be loaded, the fastest first on a device without bfloat16 units."""
    return ["float32", *([BFLOAT16_WEIGHTS] if _keeps_bfloat16(model) else []), "bfloat16"]


def _keeps_bfloat16(model: Weights) -> bool:
    """Returns whether `bfloat16-weights` computes with exactly the values of float32: nothing wider is stored."""
    return model.matrices > 0 and {dtype for dtype in model.stored if dtype in _FLOATS} == {"BF16"}


def _why(model: Weights, device: PlannedDevice, dtype: str) -> str:
    if device.kind == "cuda":
        return "the GPU computes in bfloat16" if device.bfloat16 else "the GPU has no bfloat16"
    if device.kind == "mps":
        return "MPS computes in bfloat16"
    if model.first == "F32":
        return "the weights are float32"
    return "the CPU computes in bfloat16" if device.bfloat16 else "the CPU is slow in bfloat16"


def _option(needs: ServiceNeeds, dtype: str) -> MemoryOption:
    size = itemsize(dtype)
    return MemoryOption(dtype, needs.model.bytes_in(dtype), needs.work[size], needs.least_work[size])


def _steps(needs: ServiceNeeds, device: PlannedDevice) -> list[int]:
    """Returns the bytes of a service from its fastest dtype down to the least with which it can start.

    They are whole MiB, the unit of a budget.
    """
    dtypes = [needs.dtype] if needs.dtype != "auto" else _by_speed(needs.model, device)
    options = [_option(needs, dtype) for dtype in dtypes]
    exact = [option.total_bytes for option in options] + [min(option.least_total_bytes for option in options)]
    sizes = [-(-size // MIB) * MIB for size in exact]
    return [size for place, size in enumerate(sizes) if place == 0 or size < min(sizes[:place])]


def _usable(needs: ServiceNeeds, device: PlannedDevice) -> int:
    """Returns the bytes that a service may use: its budget, or without one what is free less the reserve.

    A budget for another device than the service finds, or a mistaken one, is cut to the device's memory.
    """
    if needs.budget_bytes is None:
        return device.usable_bytes
    most = device.total_bytes - device.reserve_bytes if device.total_bytes else needs.budget_bytes
    return min(needs.budget_bytes, most)


def _refused(
    needs: ServiceNeeds,
    device: PlannedDevice,
    considered: Sequence[MemoryOption],
    options: Sequence[MemoryOption],
    usable: int,
) -> OutOfMemory:
    least = min(considered, key=lambda option: option.least_total_bytes)
    fits = [option.dtype for option in options if option not in considered and option.least_total_bytes <= usable]
    remedies = [f"use --dtype {fits[0]}, which fits"] if fits else []
    less_work_fits = least.weights_bytes + OVERHEAD_BYTES < usable
    remedies += [needs.remedy] if less_work_fits and needs.role != "generator" else []
    remedies += [_more_memory(needs, device), "--no-memory-plan starts it nevertheless"]
    budget = "the memory budget" if needs.budget_bytes is not None else _free(device)
    service = "the vision service" if needs.role == "vision" else f"the {needs.role}"
    return OutOfMemory(
        f"{service} does not fit: {least.dtype} needs {_gib(least.least_total_bytes)} GiB "
        f"({_gib(least.weights_bytes)} for the weights, {_gib(least.least_bytes)} for {needs.least_name}, "
        f"{_gib(OVERHEAD_BYTES)} for the process), and {_gib(usable)} may be used on {device.kind} ({budget}); "
        f"{'; '.join(remedies)}",
        reason="MEMORY_PLAN",
        metadata={
            "needed_bytes": least.least_total_bytes,
            "usable_bytes": usable,
            "fits_dtype": fits[0] if fits else "",
        },
    )


def _more_memory(needs: ServiceNeeds, device: PlannedDevice) -> str:
    """Returns how the service can get more memory: by a higher limit where one is what ends it."""
    if needs.budget_bytes is not None and needs.budget_bytes < device.usable_bytes:
        return "raise --memory-budget-mib"
    if device.limited_by == "RLIMIT_AS":
        return "raise the limit of the address space (ulimit -v, or LimitAS= of systemd)"
    if device.limited_by == "control group":
        return "raise the limit of its control group (a container's memory limit, or MemoryMax= of systemd)"
    return "end other programs or use a machine with more memory"


def _free(device: PlannedDevice) -> str:
    source = "" if device.limited_by == "free memory" else f" by {device.limited_by}"
    return f"{_gib(device.free_bytes)} GiB are free{source}, {_gib(device.reserve_bytes)} stay in reserve"


def _with_tokens(made: MemoryPlan, tokens: int) -> MemoryPlan:
    return replace(made, tick_tokens=tokens)


def _block_of(name: str, prefix: str) -> int | None:
    """Returns the number of the block that a tensor belongs to, None for a tensor outside of the blocks."""
    number = name.removeprefix(prefix).split(".", 1)[0] if name.startswith(prefix) else ""
    return int(number) if number.isdigit() else None


def _number(settings: Mapping[str, object], key: str, default: int) -> int:
    """Returns a setting that loading checks later."""
    value = settings.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value else default


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f}"
