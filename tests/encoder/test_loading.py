"""Weights arrive whole, in the dtype asked for, or are refused by name; the digest does not care how they lie."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.encoder.helpers import load, loaded
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.prompts.fitting import checkpoint_text_limit
from zrelay_shared import checkpoints
from zrelay_shared.errors import CheckpointError


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        tensors.pop(name)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_tensors_are_the_checkpoints(tiny: Path) -> None:
    stored = load_file(tiny / "model.safetensors")
    for name, tensor in loaded(tiny).encoder.model.state_dict().items():
        assert torch.equal(tensor, stored[f"model.{name}"])


def test_a_dtype_is_converted_on_the_way(tiny: Path) -> None:
    stored = load_file(tiny / "model.safetensors")
    for name, tensor in loaded(tiny, dtype="bfloat16").encoder.model.state_dict().items():
        assert torch.equal(tensor, stored[f"model.{name}"].bfloat16())


def test_a_missing_tensor_is_named(copy: Path) -> None:
    rewrite(copy, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(CheckpointError, match=r"lack layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


def test_what_no_layer_needs_may_be_missing(copy: Path) -> None:
    rewrite(copy, {"model.layers.4.mlp.up_proj.weight": None, "model.norm.weight": None})
    load(copy)
    with pytest.raises(CheckpointError, match="lack"):
        load(copy, hidden_layer=-1)


def test_weights_of_another_size_are_refused(copy: Path) -> None:
    rewrite(copy, {"model.layers.0.mlp.up_proj.weight": torch.zeros(60, 32)})
    with pytest.raises(CheckpointError, match=r"has shape \[60, 32\], config.json requires \[64, 32\]"):
        load(copy)


def test_integer_weights_are_refused(copy: Path) -> None:
    rewrite(copy, {"model.layers.0.mlp.up_proj.weight": torch.zeros(64, 32, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="integer weights without scales"):
        load(copy)


def test_plain_float8_is_loaded(copy: Path) -> None:
    name = "layers.0.mlp.up_proj.weight"
    stored = load_file(copy / "model.safetensors")[f"model.{name}"].to(torch.float8_e4m3fn)
    rewrite(copy, {f"model.{name}": stored})
    encoder = load(copy).encoder
    assert torch.equal(encoder.model.state_dict()[name], stored.float())
    assert encoder.fingerprint.quantization == "none", "the digest covers the stored values"


@pytest.mark.parametrize("name", ["layers.0.mlp.down_proj.weight", "embed_tokens.weight"])
def test_a_value_that_is_not_finite_is_named(copy: Path, name: str) -> None:
    broken = load_file(copy / "model.safetensors")[f"model.{name}"]
    broken[0, 0] = torch.nan
    rewrite(copy, {f"model.{name}": broken})
    with pytest.raises(CheckpointError, match=f"model.safetensors: tensor model.{name} holds NaN") as caught:
        load(copy)
    assert "--dtype" not in caught.value.message


def test_a_tensor_that_the_network_does_not_have_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    extra = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}  # attention_bias is off in config.json
    save_file(tensors | extra, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"hold model.layers.0.self_attn.q_proj.bias"):
        load(copy)


@pytest.mark.parametrize("name", ["layers.3.foo", "layers.4.foo", "layers.9.foo", "layers.5.mlp.up_proj.weight", "foo"])
def test_a_tensor_that_the_whole_model_does_not_have_is_refused(copy: Path, name: str) -> None:
    """Layer -2 needs the blocks 0 to 3 of the 5."""
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {f"model.{name}": torch.zeros(3)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"hold model\.{name}, which a model of this config\.json does not have"):
        load(copy)


def test_a_rotary_table_and_an_lm_head_change_nothing(tiny: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    saved = {"model.rotary_emb.inv_freq": torch.ones(8), "model.layers.4.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(tensors | saved | {"lm_head.weight": torch.zeros(768, 32)}, copy / "model.safetensors")
    encoder, plain = load(copy).encoder, loaded(tiny).encoder
    assert encoder.fingerprint.weights_digest == plain.fingerprint.weights_digest


def test_a_token_without_a_row_of_the_embedding_is_refused(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    more = [f"<extra_{at}>" for at in range(40)]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"additional_special_tokens": more}))
    with pytest.raises(
        CheckpointError, match=r"token '<extra_22>' has id 768 \(and 17 more\), but the embedding has 768"
    ):
        load(copy)


def test_a_config_that_makes_no_model_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_types": ["sliding_attention"] * 5}))
    with pytest.raises(CheckpointError, match="sliding_attention"):
        load(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", -1), ("num_hidden_layers", "many"), ("hidden_size", -32), ("num_attention_heads", 0),
     ("rms_norm_eps", "small"), ("layer_types", 3), ("vocab_size", 0), ("head_dim", None), ("hidden_act", "none")],
)  # fmt: skip
def test_a_config_of_no_numbers_is_refused(copy: Path, key: str, value: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(copy)


@pytest.mark.parametrize("template", ["{% for", "{{ raise_exception('no') }}", "{{ messages.x.y.z }}", "\xff"])
def test_a_template_that_formats_nothing_is_refused(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template, encoding="latin-1")
    with pytest.raises(CheckpointError, match="template"):
        load(copy)


@pytest.mark.parametrize("template", ["{{ 'no prompt' }}", "{# nothing #}"])
def test_a_template_without_the_prompt_is_refused(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match="its chat template leaves out the prompt"):
        load(copy)


def test_every_file_may_begin_with_a_byte_order_mark(tiny: Path, copy: Path) -> None:
    for path in [*copy.glob("*.json"), *copy.glob("*.jinja"), *copy.glob("*.txt")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked, plain = load(copy), loaded(tiny)
    assert torch.equal(marked.encode("a star")[0], plain.encode("a star")[0])
    assert marked.encoder.fingerprint == dataclasses.replace(plain.encoder.fingerprint, model_id=copy.name)


def test_a_layer_that_the_model_has_not_is_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="--hidden-layer: expected -5 to -1, got -6"):
        load(tiny, hidden_layer=-6)


def test_one_digest_for_every_form(tiny: Path, tiny_sharded: Path, tiny_untied: Path, tmp_path: Path) -> None:
    def digests(path: Path) -> tuple[str, str, str]:
        identity = load(path).encoder.fingerprint
        return identity.weights_digest, identity.tokenizer_digest, identity.chat_template_digest

    plain = digests(tiny)
    assert len(list(tiny_sharded.glob("*.safetensors"))) > 1
    assert digests(tiny_sharded) == plain
    pipeline = tmp_path / "pipeline"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(pipeline / "text_encoder")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(pipeline / "tokenizer")
    assert digests(pipeline) == plain
    assert digests(tiny_untied)[0] != plain[0]
    assert digests(tiny_untied)[1:] == plain[1:]


def test_a_restart_does_not_read_the_weights_for_their_digest(copy: Path, tmp_path: Path) -> None:
    cache, weights = tmp_path / "cache", copy / "model.safetensors"
    first = load(copy, cache=cache).encoder.fingerprint.weights_digest
    stat = weights.stat()
    with weights.open("r+b") as file:  # other bytes under the same size, time and inode: only reading would tell
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(copy, cache=cache).encoder.fingerprint.weights_digest == first
    os.utime(weights, ns=(1, 1))
    assert load(copy, cache=cache).encoder.fingerprint.weights_digest != first


def test_the_fingerprint(demo_checkpoint: Path) -> None:
    fingerprint = loaded(demo_checkpoint).encoder.fingerprint
    assert (fingerprint.family, fingerprint.width, fingerprint.model_id) == ("qwen3", 128, "zrelay-demo")
    assert (fingerprint.compute_dtype, fingerprint.backend) == ("float32", "torch-cpu")
    assert (fingerprint.hidden_layer, fingerprint.before_final_norm) == (-2, True)


def test_the_text_limit_of_the_transformer_beside(demo_checkpoint: Path, tiny: Path) -> None:
    assert checkpoint_text_limit(checkpoints.open_text_encoder(demo_checkpoint)) == 992
    assert checkpoint_text_limit(checkpoints.open_text_encoder(tiny)) is None


@pytest.mark.parametrize(
    "bad", [{"device": "gpu"}, {"dtype": "fp16"}, {"threads": 0}, {"hidden_layer": 0}, {"max_prompts": 0}]
)
def test_a_config_is_checked_once(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
        EncoderConfig(model=tmp_path, **bad)
