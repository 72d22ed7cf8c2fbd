"""The normalised configuration: spellings that are the same, what is refused, and that no value is missing."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import (
    PretrainedConfig,
    Qwen3Config,
    Qwen3VLConfig,
    Siglip2TextConfig,
    Siglip2VisionConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig

from tests.helpers.configurations import ROPES, edited
from zrelay_demo import CHECKPOINT
from zrelay_shared.configuration import TABLES, combined_digest, configuration_digest, read_configuration
from zrelay_shared.errors import CheckpointError

TINY = {
    "vocab_size": 768,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
CLASSES: list[tuple[str, Any]] = [
    ("text_encoder", Qwen3Config),
    ("siglip_vision", SiglipVisionConfig),
    ("siglip2_vision", Siglip2VisionConfig),
    ("siglip_text", SiglipTextConfig),
    ("siglip_text", Siglip2TextConfig),
    ("qwen3_vl", Qwen3VLConfig),
    ("qwen3_vl.text_config", Qwen3VLTextConfig),
    ("qwen3_vl.vision_config", Qwen3VLVisionConfig),
]


def demo(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CHECKPOINT / name / "config.json").read_text())
    return config


def table(name: str) -> Any:
    kind, _, part = name.partition(".")
    return TABLES[kind].parts[part] if part else TABLES[kind]


def test_golden_digests() -> None:
    """They are stored in job rows, images and files of embeddings: a release may not change them."""
    text_encoder = configuration_digest("text_encoder", demo("text_encoder"))
    assert text_encoder == "5bbd78b0caf806f5ab587d5b12343abc06596299b7546cb53da09e3cb7731a40"
    both = [read_configuration(name, demo(name)) for name in ("transformer", "vae")]
    assert combined_digest(*both) == combined_digest(*reversed(both))
    assert combined_digest(*both) == "7b3e3949de9091b1777a7a58b8b3a388c0a736d0e465556c3fdbff37609dba5a"


@pytest.mark.parametrize(("name", "kind"), [("transformer", ZImageTransformer2DModel), ("vae", AutoencoderKL)])
def test_every_parameter_of_a_diffusers_model_is_in_its_table(name: str, kind: Any) -> None:
    """A newer diffusers with another parameter fails here: read its code and extend the table."""
    parameters = set(inspect.signature(kind.__init__).parameters) - {"self"}
    assert table(name).names | set(table(name).unread) == parameters
    assert not table(name).names & set(table(name).unread)


@pytest.mark.parametrize(("name", "kind"), CLASSES)
def test_every_field_of_a_transformers_configuration_is_in_its_table(name: str, kind: Any) -> None:
    inherited = {field.name for field in dataclasses.fields(PretrainedConfig)}
    own = {field.name for field in dataclasses.fields(kind)} - inherited
    declared = {field for field in own | set(table(name).unread) if field in inspect.signature(kind).parameters}
    assert table(name).names >= own - set(table(name).unread)
    assert declared - table(name).names <= set(table(name).unread)
    assert not table(name).names - own, "a value that the class does not have"


@pytest.mark.parametrize(("name", "kind"), [("transformer", ZImageTransformer2DModel), ("vae", AutoencoderKL)])
def test_the_defaults_are_those_of_the_published_class(name: str, kind: Any) -> None:
    defaults = {each.name: each.default for each in inspect.signature(kind.__init__).parameters.values()}
    unread = table(name).unread
    wanted = {key: value for key, value in defaults.items() if key != "self" and key not in unread}
    assert read_configuration(name, {}).digest == configuration_digest(name, wanted)


@pytest.mark.parametrize(("name", "kind"), [pair for pair in CLASSES if "qwen3_vl" not in pair[0]])
def test_the_defaults_are_those_of_transformers(name: str, kind: Any) -> None:
    assert configuration_digest(name, kind().to_dict()) == configuration_digest(name, {})


def test_the_defaults_of_qwen3_vl_are_those_of_transformers() -> None:
    made = Qwen3VLConfig().to_dict()
    theta = {"rope_theta": made["text_config"]["rope_parameters"]["rope_theta"]}
    assert configuration_digest("qwen3_vl", made) == configuration_digest("qwen3_vl", {"text_config": theta})


def rotation(config: Mapping[str, Any]) -> tuple[list[float], float]:
    """Returns the table that transformers makes of a configuration."""
    rope: Any = Qwen3RotaryEmbedding(Qwen3Config.from_dict(dict(config)))
    return rope.inv_freq.tolist(), float(rope.attention_scaling)


def test_equal_rotations_have_equal_digests_and_transformers_makes_the_same_of_both() -> None:
    known: list[tuple[str, tuple[list[float], float]]] = []
    for edit in ROPES:
        config = edited(TINY, edit)
        try:
            normal = read_configuration("text_encoder", config)
        except CheckpointError as error:
            assert "rope" in error.message or "partial_rotary_factor" in error.message
            continue
        table_of = rotation(normal.arguments())
        exact = normal.values["rope_parameters"]["rope_type"] != "default" or "yarn" not in str(edit)
        ours, theirs = torch.tensor(table_of[0]), torch.tensor(rotation(config)[0])
        assert table_of[1] == rotation(config)[1]
        assert torch.equal(ours, theirs) if exact else torch.allclose(ours, theirs, rtol=1e-6), edit
        known.append((normal.digest, table_of))
    assert len(known) > 20
    for digest, table_of in known:
        for other, table_of_other in known:
            assert (digest == other) == (table_of == table_of_other)


@pytest.mark.parametrize(
    "edit",
    [
        {"hidden_act": "swish"},
        {"rms_norm_eps": 0.000001},
        {"head_dim": 16.0},
        {"rope_theta": 10000},
        {"rope_scaling": None, "rope_theta": 10000.0},
        {"rope_scaling": {"type": "default"}},
        {"rope_parameters": {"type": "default", "rope_theta": 10000}},
        {"attention_dropout": 0.5, "dtype": "float16", "torch_dtype": "bfloat16", "tie_word_embeddings": True},
        {"max_position_embeddings": 40960, "use_cache": False, "architectures": ["Qwen3Model"], "eos_token_id": [1]},
        {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 1},
        {"layer_types": ["full_attention"] * 5, "transformers_version": "4.51.0", "something_new": {"a": 1}},
    ],
)
def test_the_same_configuration_in_another_spelling(edit: dict[str, Any]) -> None:
    assert configuration_digest("text_encoder", TINY | edit) == configuration_digest("text_encoder", TINY)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("text_encoder", {"num_hidden_layers": "many"}, "num_hidden_layers: expected a whole number of 1 to 1024"),
    ("text_encoder", {"num_hidden_layers": 1e300}, "num_hidden_layers: expected a whole number of 1 to 1024"),
    ("transformer", {"n_layers": 10**50}, "n_layers: expected a whole number of 1 to 1024"),
    ("transformer", {"dim": 10**50}, "dim: expected a whole number of 1 to 2147483647"),
    ("text_encoder", {"num_hidden_layers": True}, "num_hidden_layers"),
    ("text_encoder", {"hidden_size": 32.5}, "hidden_size"),
    ("text_encoder", {"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a finite number of at least 0, got nan"),
    ("text_encoder", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ("text_encoder", {"rms_norm_eps": None}, "rms_norm_eps.*got null"),
    ("text_encoder", {"attention_bias": 0}, "attention_bias: expected true or false"),
    ("text_encoder", {"hidden_act": "SiLU"}, "hidden_act"),
    ("text_encoder", {"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor"),
    ("text_encoder", {"head_dim": 15}, "head_dim: expected an even number"),
    ("text_encoder", {"layer_types": ["sliding_attention"] * 5}, "layer_types.*sliding_attention"),
    ("text_encoder", {"use_sliding_window": True, "max_window_layers": 2}, "use_sliding_window: expected false"),
    ("text_encoder", {"use_sliding_window": True, "max_window_layers": 0}, "true for layers from 0"),
    ("text_encoder", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers: expected a whole"),
    ("text_encoder", {"rope_theta": -1.0}, "rope_theta"),
    ("text_encoder", {"rope_theta": float("inf")}, "rope_theta"),
    ("text_encoder", {"rope_parameters": []} | {"rope_scaling": 3}, "rope_"),
    ("text_encoder", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor: expected a value"),
    ("text_encoder", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "depend on the other prompts"),
    ("text_encoder", {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2}}, "rope_type and type"),
    ("text_encoder", {"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": 0}}, "truncate"),
    ("text_encoder", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "some for full_attention"),
    ("transformer", {"all_patch_size": [2, 4]}, "all_patch_size"),
    ("transformer", {"qk_norm": False}, "qk_norm"),
    ("transformer", {"t_scale": 0}, "t_scale: expected a finite number above 0, got 0"),
    ("transformer", {"axes_dims": [8, 12, 10]}, "axes_dims"),
    ("transformer", {"axes_dims": [9, 11, 12]}, "axes_dims"),
    ("transformer", {"axes_lens": [1024, 128]}, "axes_lens"),
    ("transformer", {"cap_feat_dim": "wide"}, "cap_feat_dim"),
    ("vae", {"scaling_factor": 0.0}, "scaling_factor"),
    ("vae", {"scaling_factor": None}, "scaling_factor"),
    ("vae", {"norm_num_groups": 5}, "norm_num_groups"),
    ("vae", {"down_block_types": ["DownBlock2D"] * 4}, "down_block_types"),
    ("vae", {"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
    ("vae", {"act_fn": "elu"}, "act_fn"),
]


@pytest.mark.parametrize(("kind", "edit", "message"), REFUSED)
def test_a_value_that_makes_no_model_is_refused_by_name(kind: str, edit: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as refused:
        configuration_digest(kind, (TINY if kind == "text_encoder" else demo(kind)) | edit, file=f"{kind}/config.json")
    assert refused.value.metadata["file"] == f"{kind}/config.json"
    assert refused.value.metadata["key"] and refused.value.metadata["expected"] and refused.value.metadata["got"]


@pytest.mark.parametrize(
    ("edit", "remedy"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "use another checkpoint"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "use another checkpoint"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "use another checkpoint"),
        ({"layer_types": ["sliding_attention"] * 5}, "use another checkpoint"),
        ({"use_sliding_window": True, "max_window_layers": 0}, "use another checkpoint"),
        ({"layer_types": 3}, "copy the file again from its checkpoint"),
        ({"rms_norm_eps": "small"}, "copy the file again from its checkpoint"),
        ({"hidden_act": "xielu"}, "copy the file again from its checkpoint, or use another checkpoint"),
    ],
)
def test_the_remedy_helps(edit: dict[str, Any], remedy: str) -> None:
    """A copy of the file does not help where zrelay does not run what the file describes."""
    with pytest.raises(CheckpointError) as refused:
        configuration_digest("text_encoder", TINY | edit)
    assert refused.value.message.endswith(remedy)
    assert ("copy the file" in refused.value.message) == ("copy the file" in remedy)


def test_null_is_read_as_transformers_reads_it() -> None:
    """transformers tests the truth of a flag, so null is false, also where the default is true."""
    yarn: dict[str, Any] = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
    of_null, of_false, default = (
        TINY | {"rope_parameters": yarn | edit} for edit in ({"truncate": None}, {"truncate": False}, {})
    )
    digests = [configuration_digest("text_encoder", each) for each in (of_null, of_false, default)]
    assert digests[0] == digests[1] != digests[2]
    assert rotation(of_null) == rotation(of_false) != rotation(default)
    null_bias = read_configuration("text_encoder", TINY | {"attention_bias": None})
    assert null_bias.digest == configuration_digest("text_encoder", TINY)
    assert null_bias.values["attention_bias"] is False


def test_qwen3_vl_needs_a_rope_theta() -> None:
    """transformers 4 and 5 differ in its default."""
    with pytest.raises(CheckpointError, match=r"text_config\.rope_theta"):
        configuration_digest("qwen3_vl", {})


def test_only_known_values_are_read_of_a_configuration() -> None:
    """Building a block reads nothing from the configuration that the table does not have, or that changes nothing."""
    read: set[str] = set()

    class Recording(Qwen3Config):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_") and not callable(getattr(type(self), name, None)):
                read.add(name)
            return object.__getattribute__(self, name)

    config = Recording(**read_configuration("text_encoder", TINY).arguments())
    config._attn_implementation = "sdpa"
    read.clear()
    with torch.device("meta"):
        Qwen3DecoderLayer(config, 0)
    Qwen3RotaryEmbedding(config)
    assert {"hidden_act", "rms_norm_eps", "rope_parameters"} <= read
    known = table("text_encoder").names | set(table("text_encoder").unread)
    assert read - known <= {"is_heterogeneous", "per_layer_config", "chunk_size_feed_forward"}
