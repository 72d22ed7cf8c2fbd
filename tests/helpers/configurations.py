"""Random edits of config.json for the property tests of identity."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import strategies as st

from zrelay_shared.errors import CheckpointError

Edit: TypeAlias = dict[str, Any]
"""Key -> new value. `ABSENT` removes the key."""

ABSENT = "(absent)"


def edits(choices: Mapping[str, list[Any]], *, most: int = 3) -> st.SearchStrategy[Edit]:
    """Draws up to `most` keys with one of their values each."""
    keys = st.lists(st.sampled_from(sorted(choices)), max_size=most, unique=True)
    return keys.flatmap(lambda names: st.fixed_dictionaries({name: st.sampled_from(choices[name]) for name in names}))


def edited(config: Mapping[str, Any], edit: Edit) -> dict[str, Any]:
    """Returns a configuration with an edit applied."""
    return {name: value for name, value in {**config, **edit}.items() if not _is_absent(value)}


def _is_absent(value: object) -> bool:
    return isinstance(value, str) and value == ABSENT


def with_config(folder: Path, into: Path, config: Mapping[str, Any], *, component: str = "") -> Path:
    """Returns a folder of links to the files of `folder`, with another config.json in `component`."""
    for file in folder.rglob("*"):
        if file.is_file():
            place = into / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(file.resolve())
    target = into / component / "config.json"
    target.unlink()
    target.write_text(json.dumps(config))
    return into


def outcome(work: Callable[[], Any], edit: Edit) -> Any:
    """Returns what `work` returns, None if it refuses the configuration by the name of a key or of a tensor."""
    try:
        return work()
    except CheckpointError as error:
        named = any(key in error.message for key in edit)
        tensor = "config.json" in error.message and any(part in error.message for part in (".weight", ".bias"))
        assert named or tensor, (edit, error.message)
        return None


ROPES: list[Edit] = [
    {},
    {"rope_parameters": ABSENT},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    {"rope_parameters": ABSENT, "rope_theta": 10000.0, "rope_scaling": None},
    {"rope_parameters": ABSENT, "rope_theta": 1000000},
    {"rope_parameters": {"rope_theta": 1e6}},
    {"rope_parameters": ABSENT, "rope_theta": 1000000.0, "rope_scaling": {"type": "default"}},
    {"rope_parameters": {"rope_type": "linear", "factor": 1}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 10000.0}},
    {"rope_parameters": ABSENT, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": ABSENT, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 1.0}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}},
    {"rope_parameters": ABSENT, "rope_scaling": {"type": "yarn", "factor": 4}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": None}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 33}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.5}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 10**9}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 1024}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e6},
]
"""Rope parameters of a language model in the spellings of transformers 4 and 5, some of them the same."""
