"""Opens checkpoint folders of Z-Image. If a folder is incomplete, the error names the missing file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zrelay_shared.chat_templates import read_chat_template
from zrelay_shared.checkpoint_files import (
    find_pickles,
    find_weights,
    join,
    pickle_refusal,
    read_json,
    refusal,
    require_folder,
)
from zrelay_shared.errors import listed
from zrelay_shared.tokenizer_files import check_tokenizer, has_tokenizer


@dataclass(frozen=True)
class _Kind:
    """Files of a kind of component: its config file, the key with its type, and the base name of its weights."""

    config_file: str
    key: str
    expected: tuple[str, ...]
    weights: str | None


_KINDS = {
    "text_encoder": _Kind("config.json", "model_type", ("qwen3",), "model"),
    "transformer": _Kind("config.json", "_class_name", ("ZImageTransformer2DModel",), "diffusion_pytorch_model"),
    "vae": _Kind("config.json", "_class_name", ("AutoencoderKL",), "diffusion_pytorch_model"),
    "scheduler": _Kind("scheduler_config.json", "_class_name", ("FlowMatchEulerDiscreteScheduler",), None),
}


@dataclass(frozen=True)
class ComponentFolder:
    """A checked component of a checkpoint.

    Attributes:
        name: Kind of the component, for example `transformer`.
        path: Its folder.
        config: Its parsed configuration.
        weights: Its safetensors files in order; empty for a scheduler.
        index: Tensor name -> file name for sharded weights, else None.
    """

    name: str
    path: Path
    config: Mapping[str, object]
    weights: tuple[Path, ...]
    index: Mapping[str, str] | None


@dataclass(frozen=True)
class PipelineFolder:
    """A diffusers pipeline folder.

    Components are checked when they are opened: a generator needs no text encoder, an encoder no transformer.
    """

    path: Path
    model_index: Mapping[str, object]

    def component(self, name: str) -> ComponentFolder:
        """Opens `text_encoder`, `transformer`, `vae` or `scheduler`. Raises CheckpointError."""
        return _component(self.path, name, name)

    def tokenizer(self) -> Path:
        """Checks the tokenizer and returns its folder. Raises CheckpointError."""
        return check_tokenizer(self.path, "tokenizer")

    def chat_template(self) -> str:
        """Returns the text of the chat template. Raises CheckpointError."""
        return read_chat_template(self.path, "tokenizer")


@dataclass(frozen=True)
class TextEncoderFolder:
    """A text encoder with its tokenizer.

    Attributes:
        component: The model.
        tokenizer: Folder with the tokenizer's files.
        chat_template: Text of the chat template.
        transformer_config: transformer/config.json of the same checkpoint, None if it has none.
    """

    component: ComponentFolder
    tokenizer: Path
    chat_template: str
    transformer_config: Mapping[str, object] | None


@dataclass(frozen=True)
class GenerationDefaults:
    """Values of fields that a request does not set. Sizes are in pixels; names are those of diffusers."""

    name: str = ""
    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 8
    guidance_scale: float = 0.0
    shift: float = 3.0
    max_sequence_length: int = 512


def open_pipeline(path: Path) -> PipelineFolder:
    """Opens a pipeline folder. Raises CheckpointError if it is not one, or belongs to another model."""
    require_folder(path)
    if not (path / "model_index.json").is_file():
        raise refusal(
            path,
            "model_index.json",
            "is missing",
            "a Z-Image checkpoint is a folder with model_index.json, transformer/, vae/, scheduler/, text_encoder/ and "
            "tokenizer/, as diffusers saves it; give that folder",
        )
    model_index = read_json(path, "model_index.json")
    found = model_index.get("_class_name")
    if not (isinstance(found, str) and found.startswith("ZImage")):
        raise refusal(
            path,
            "model_index.json",
            f"says _class_name {found!r}, expected a ZImage pipeline",
            "give the folder of a Z-Image checkpoint",
        )
    return PipelineFolder(path, model_index)


def open_text_encoder(path: Path) -> TextEncoderFolder:
    """Opens the text encoder of a pipeline folder (text_encoder/ and tokenizer/), or a bare Qwen3 folder that also
    holds its tokenizer's files. Weights may be sharded. Raises CheckpointError."""
    require_folder(path)
    if (path / "model_index.json").is_file() or (path / "text_encoder").is_dir():
        component = _component(path, "text_encoder", "text_encoder")
        inside, beside = "tokenizer", path
    elif (path / "config.json").is_file() or find_pickles(path) or any(path.glob("*.safetensors*")):
        component = _component(path, "", "text_encoder")
        tokenizer_beside = not has_tokenizer(path) and has_tokenizer(path.parent / "tokenizer")
        inside, beside = ("../tokenizer" if tokenizer_beside else ""), path.parent
    else:
        raise refusal(
            path,
            "",
            "is not a checkpoint: it has neither model_index.json nor config.json",
            "give a Z-Image pipeline folder, or a Qwen3 folder with config.json, model.safetensors and its tokenizer",
        )
    tokenizer = check_tokenizer(path, inside)
    transformer = beside / "transformer" / "config.json"
    return TextEncoderFolder(
        component,
        tokenizer,
        read_chat_template(path, inside),
        read_json(beside, "transformer/config.json") if transformer.is_file() else None,
    )


def defaults(path: Path) -> GenerationDefaults:
    """Returns the defaults of a pipeline folder.

    They come from its zrelay.json; else they are 1024 x 1024 pixels, 8 steps, guidance 0 and the scheduler's shift.

    Raises:
        CheckpointError: zrelay.json has an unknown key or an invalid value.
    """
    own = read_json(path, "zrelay.json") if (path / "zrelay.json").is_file() else {}
    known = GenerationDefaults.__dataclass_fields__
    if unknown := sorted(set(own) - set(known)):
        raise refusal(
            path, "zrelay.json", f"has unknown keys {listed(unknown)}", f"known are {', '.join(known)}; remove the rest"
        )
    shift = own.get("shift", _component(path, "scheduler", "scheduler").config.get("shift", 1.0))
    name = own.get("name", "")
    if not isinstance(name, str):
        raise refusal(path, "zrelay.json", f"says name {name!r}", "name must be a string")
    return GenerationDefaults(
        name=name,
        width=_pixels(path, "width", own.get("width", GenerationDefaults.width)),
        height=_pixels(path, "height", own.get("height", GenerationDefaults.height)),
        num_inference_steps=_count(path, "num_inference_steps", own.get("num_inference_steps", 8)),
        guidance_scale=_number(path, "guidance_scale", own.get("guidance_scale", 0.0), 0.0),
        shift=_number(path, "shift", shift, 1e-6),
        max_sequence_length=_count(path, "max_sequence_length", own.get("max_sequence_length", 512)),
    )


def text_limit(axes_lens: Sequence[int]) -> int:
    """Returns the maximum number of prompt tokens of a transformer with these RoPE tables.

    It is the largest multiple of 32 up to axes_lens[0] - 2: prompts are padded to a multiple of 32 and start at
    position 1, and image tokens have the position after them on this axis (ZImageTransformer2DModel).

    Raises:
        ValueError: Not even 32 tokens fit.
    """
    rows = axes_lens[0] if axes_lens else 0
    if rows < 34:
        raise ValueError(f"axes_lens[0]: expected at least 34, got {rows}")
    return (rows - 2) // 32 * 32


def _component(root: Path, inside: str, kind: str) -> ComponentFolder:
    if kind not in _KINDS:
        raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    rules, folder = _KINDS[kind], root / inside
    if inside and not folder.is_dir():
        raise refusal(
            root,
            f"{inside}/",
            "is missing",
            f"it should hold the checkpoint's {kind.replace('_', ' ')}; copy the folder again from its source",
        )
    config_file = join(inside, rules.config_file)
    weights: tuple[Path, ...] = ()
    index: Mapping[str, str] | None = None
    if rules.weights and not (folder / rules.config_file).is_file() and (pickled := find_pickles(folder)):
        raise pickle_refusal(root, [join(inside, name) for name in pickled])
    config = read_json(root, config_file)
    found = config.get(rules.key)
    if found not in rules.expected:
        raise refusal(
            root,
            config_file,
            f"says {rules.key} {found!r}, expected {' or '.join(map(repr, rules.expected))}",
            f"this folder holds another model; give one whose {kind.replace('_', ' ')} is Z-Image's",
        )
    if rules.weights:
        weights, index = find_weights(root, inside, rules.weights, config)
    return ComponentFolder(kind, folder, config, weights, index)


def _pixels(root: Path, key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 16 or value % 16:
        raise refusal(root, "zrelay.json", f"says {key} {value!r}", f"{key} must be a positive multiple of 16")
    return value


def _count(root: Path, key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(root, "zrelay.json", f"says {key} {value!r}", f"{key} must be a whole number of at least 1")
    return value


def _number(root: Path, key: str, value: object, least: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < float("inf"):
        raise refusal(root, "zrelay.json", f"says {key} {value!r}", f"{key} must be a number of at least {least:g}")
    return float(value)


def model_id(path: Path) -> str:
    """Returns the display name of a checkpoint: the name in its zrelay.json, else its folder's name; never a path."""
    whole = path.resolve()
    folder = whole.parent if whole.name == "text_encoder" else whole
    name = read_json(folder, "zrelay.json").get("name") if (folder / "zrelay.json").is_file() else None
    return name if isinstance(name, str) and name else folder.name
