"""Which dtypes and layouts of weights zrelay loads. The rest is refused by name, before anything is read or computed.

All components accept the same: plain tensors of `ACCEPTED_DTYPES`. Float8 without scales is a plain tensor too: each
value is exact in bfloat16, float16 and float32. Float64 is refused, since every compute dtype would round it.
"""

from collections.abc import Iterable, Mapping

from zrelay_shared.safetensors_header import TensorEntry

ACCEPTED_DTYPES = ("BF16", "F16", "F32", "F8_E4M3", "F8_E5M2")
"""Dtypes of weights by safetensors' names."""

ORIGINAL = "use the original checkpoint in bfloat16, float16 or float32"
_RESAVE = "load it where it was made, convert it to bfloat16 or float32, and save it again"

# The last part of a tensor's name -> the layout it belongs to. The first match of a file decides: a layout that has
# parts of another one as well comes first.
_LAYOUTS = (
    ("Nunchaku (SVDQuant)", ("wscales", "wcscales", "wtscale", "smooth_factor", "smooth_factor_orig", "smooth")),
    ("bitsandbytes", ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format")),
    ("AWQ or GPTQ", ("qweight", "qzeros", "g_idx", "scales", "channel_scale")),
    ("ComfyUI's quantised", ("comfy_quant",)),
    ("compressed-tensors", ("weight_packed", "weight_shape", "weight_zero_point", "weight_global_scale")),
    ("NVFP4", ("weight_scale_2",)),
    (
        "scaled float8",
        ("scaled_fp8", "scale_weight", "scale_input", "weight_scale", "weight_scale_inv", "input_scale", "scale_inv"),
    ),
    ("Quanto or torchao", ("_data", "_scale", "_shift", "qdata", "weight_qdata", "zero_point")),
    ("HQQ", ("W_q",)),
)
_LAYOUT_OF_PART = {part: layout for layout, parts in reversed(_LAYOUTS) for part in parts}
_RANK = {layout: rank for rank, (layout, _) in enumerate(_LAYOUTS)}
_METADATA = {"_quantization_metadata": "ComfyUI's quantised", "quantization_config": "quantised"}
_QUANTISED_DTYPES = {
    "F8_E8M0": "MX",
    "F4": "4-bit float",
    "F6_E2M3": "6-bit float",
    "F6_E3M2": "6-bit float",
    "F8_E4M3FNUZ": "float8 (FNUZ)",
    "F8_E5M2FNUZ": "float8 (FNUZ)",
}


def problem_of_weights(entries: Iterable[TensorEntry], metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns why the tensors of a file cannot be loaded and the remedy; None if they can.

    Args:
        entries: The header of the file.
        metadata: The texts of its `__metadata__`.
    """
    entries = tuple(entries)
    parts = [(entry, layout) for entry in entries if (layout := _layout(entry.name)) is not None]
    if parts:
        entry, layout = min(parts, key=lambda pair: _RANK[pair[1]])
        return f"holds {layout} weights (tensor {entry.name})", f"quantised layouts are not supported: {ORIGINAL}"
    for key, layout in _METADATA.items():
        if key in metadata:
            return f"holds {layout} weights (metadata {key})", f"quantised layouts are not supported: {ORIGINAL}"
    for entry in entries:
        if entry.dtype not in ACCEPTED_DTYPES and not _is_index(entry):
            return _problem_of_dtype(entry)
    return None


def problem_of_config(config: Mapping[str, object]) -> tuple[str, str] | None:
    """Returns why a configuration's quantisation cannot be loaded and the remedy; None if it has none."""
    found = config.get("quantization_config")
    if not found:
        return None
    kind = found.get("quant_method") or found.get("quant_type") if isinstance(found, Mapping) else None
    name = kind if isinstance(kind, str) else "unnamed"
    return f"says quantization_config ({name})", f"quantised layouts are not supported: {ORIGINAL}"


def _layout(name: str) -> str | None:
    last = name.rsplit(".", 1)[-1]
    if ".quant_state." in name or "bitsandbytes__" in last:
        return "bitsandbytes"
    return _LAYOUT_OF_PART.get(last)


def _is_index(entry: TensorEntry) -> bool:
    """Returns whether a tensor is a table of positions, which older versions of transformers saved."""
    return entry.dtype == "I64" and entry.name.rsplit(".", 1)[-1] == "position_ids"


def _problem_of_dtype(entry: TensorEntry) -> tuple[str, str]:
    expected = f"expected {', '.join(ACCEPTED_DTYPES)}"
    if entry.dtype in ("F64", "C64"):
        return f"holds tensor {entry.name} as {entry.dtype}, {expected}", _RESAVE
    if (layout := _QUANTISED_DTYPES.get(entry.dtype)) is not None:
        return f"holds {layout} weights (tensor {entry.name} is {entry.dtype}), {expected}", ORIGINAL
    return f"holds integer weights without scales (tensor {entry.name} is {entry.dtype}), {expected}", ORIGINAL
