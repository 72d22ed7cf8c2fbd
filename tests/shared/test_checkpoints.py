"""A checkpoint folder that lacks something is refused by the name of what it lacks."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.refusals import refused
from zrelay_shared import checkpoints
from zrelay_shared.errors import CheckpointError
from zrelay_shared.limits import DEFAULT_TEXT_LIMIT
from zrelay_shared.safetensors_header import SafetensorsError, read_header

QWEN3 = {"model_type": "qwen3", "num_hidden_layers": 1, "hidden_size": 2}
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}


def write_weights(path: Path, *names: str) -> None:
    tensors = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * at, 8 * at + 8]} for at, name in enumerate(names)
    }
    header_file(path, json.dumps(tensors).encode(), b"12345678" * len(names))


def header_file(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    write_json(folder / "tokenizer.json", TOKENIZER)
    write_json(folder / "tokenizer_config.json", {"chat_template": "in the config"})


@pytest.fixture
def demo_checkpoint() -> Path:
    return Path(__file__).parents[2] / "demo/zrelay_demo/checkpoint"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    root = tmp_path / "z"
    write_json(root / "model_index.json", {"_class_name": "ZImagePipeline"})
    write_json(root / "text_encoder/config.json", QWEN3)
    write_weights(root / "text_encoder/model.safetensors", "model.a", "model.b")
    write_tokenizer(root / "tokenizer")
    write_json(root / "transformer/config.json", {"_class_name": "ZImageTransformer2DModel", "axes_lens": [1536, 8, 8]})
    write_json(root / "scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6})
    write_json(
        root / "transformer/diffusion_pytorch_model.safetensors.index.json",
        {"weight_map": {"x": "d-1.safetensors", "y": "d-2.safetensors"}},
    )
    write_weights(root / "transformer/d-1.safetensors", "x")
    write_weights(root / "transformer/d-2.safetensors", "y")
    return root


def refused_checkpoint(action: Callable[[], object], *fragments: str) -> CheckpointError:
    """Opens a folder, which must be refused with all `fragments` in the message, and returns the error."""
    error = refused(action, CheckpointError)
    for fragment in fragments:
        assert fragment in error.message
    return error


def test_a_pipeline_folder_gives_its_components(pipeline: Path) -> None:
    opened = checkpoints.open_pipeline(pipeline)
    transformer = opened.component("transformer")
    assert [path.name for path in transformer.weights] == ["d-1.safetensors", "d-2.safetensors"]
    assert transformer.index == {"x": "d-1.safetensors", "y": "d-2.safetensors"}
    assert checkpoints.text_limit([1536, 8, 8]) == DEFAULT_TEXT_LIMIT == 1504
    assert opened.component("scheduler").weights == ()
    assert opened.component("text_encoder").index is None
    assert opened.tokenizer() == pipeline / "tokenizer"


def test_the_demo_checkpoint_is_one(demo_checkpoint: Path) -> None:
    opened = checkpoints.open_pipeline(demo_checkpoint)
    for name in ("text_encoder", "transformer", "vae", "scheduler"):
        assert opened.component(name).config
    encoder = checkpoints.open_text_encoder(demo_checkpoint)
    assert encoder.transformer_config is not None
    assert "<|im_start|>" in encoder.chat_template
    assert checkpoints.defaults(demo_checkpoint).width == 128


def test_a_machine_that_only_paints_needs_no_text_encoder(pipeline: Path) -> None:
    shutil.rmtree(pipeline / "text_encoder")
    opened = checkpoints.open_pipeline(pipeline)
    assert opened.component("transformer").weights
    refused_checkpoint(lambda: opened.component("text_encoder"), "text_encoder/ is missing", "copy")


def test_a_text_encoder_may_stand_alone(pipeline: Path, tmp_path: Path) -> None:
    bare = tmp_path / "qwen"
    shutil.copytree(pipeline / "text_encoder", bare)
    refused_checkpoint(
        lambda: checkpoints.open_text_encoder(bare), "tokenizer.json is missing", "vocab.json and merges.txt"
    )
    write_tokenizer(bare)
    opened = checkpoints.open_text_encoder(bare)
    assert opened.tokenizer == bare
    assert opened.chat_template == "in the config"
    assert opened.transformer_config is None


def test_the_text_encoder_folder_of_a_pipeline_finds_what_stands_beside_it(pipeline: Path) -> None:
    opened = checkpoints.open_text_encoder(pipeline / "text_encoder")
    assert opened.tokenizer.resolve() == pipeline / "tokenizer"
    assert opened.transformer_config == {"_class_name": "ZImageTransformer2DModel", "axes_lens": [1536, 8, 8]}


def test_a_template_file_wins_over_the_config(pipeline: Path) -> None:
    (pipeline / "tokenizer/chat_template.jinja").write_text("in a file")
    assert checkpoints.open_text_encoder(pipeline).chat_template == "in a file"


def test_no_template_is_refused(pipeline: Path) -> None:
    write_json(pipeline / "tokenizer/tokenizer_config.json", {})
    refused_checkpoint(lambda: checkpoints.open_text_encoder(pipeline), "tokenizer/chat_template.jinja is missing")


@pytest.mark.parametrize("file", ["model_index.json", "tokenizer/tokenizer.json", "text_encoder/model.safetensors"])
def test_a_missing_file_is_named(pipeline: Path, file: str) -> None:
    (pipeline / file).unlink()
    action = checkpoints.open_pipeline if file == "model_index.json" else checkpoints.open_text_encoder
    error = refused_checkpoint(lambda: action(pipeline), f"{file} is missing")
    assert error.metadata["file"] == file


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/config.json",
        "transformer/d-2.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/chat_template.jinja",
        "",
    ],
)
def test_a_broken_symbolic_link_is_called_one(pipeline: Path, file: str) -> None:
    """As in a cache whose blobs were removed."""
    link = pipeline / file if file else pipeline
    if link.exists():
        link.rename(pipeline.parent / "pruned")
    link.symlink_to("../blobs/0123abcd")
    error = refused_checkpoint(
        lambda: [
            checkpoints.open_text_encoder(pipeline),
            checkpoints.open_pipeline(pipeline).component("transformer"),
        ],
        f"{link.name} is a broken symbolic link: its target ../blobs/0123abcd does not exist",
        "copy the checkpoint with the files that its links point to",
    )
    assert error.metadata["file"] == (file or "z")


def test_a_missing_shard_is_named(pipeline: Path) -> None:
    (pipeline / "transformer/d-2.safetensors").unlink()
    opened = checkpoints.open_pipeline(pipeline)
    refused_checkpoint(
        lambda: opened.component("transformer"), "transformer/d-2.safetensors is missing", "one of 2 shards"
    )


def test_a_shard_without_its_tensor_is_named(pipeline: Path) -> None:
    write_weights(pipeline / "transformer/d-2.safetensors", "other")
    opened = checkpoints.open_pipeline(pipeline)
    refused_checkpoint(lambda: opened.component("transformer"), "transformer/d-2.safetensors lacks y")


def test_an_index_cannot_point_outside_its_folder(pipeline: Path) -> None:
    index = pipeline / "transformer/diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"weight_map": {"x": "../../etc/passwd.safetensors"}})
    opened = checkpoints.open_pipeline(pipeline)
    refused_checkpoint(lambda: opened.component("transformer"), "../../etc/passwd.safetensors", "same folder")


def test_broken_json_is_named_with_its_line(pipeline: Path) -> None:
    (pipeline / "text_encoder/config.json").write_text('{"model_type": "qwen3",\n "hidden')
    refused_checkpoint(
        lambda: checkpoints.open_text_encoder(pipeline), "text_encoder/config.json is not JSON (line 2, "
    )


def test_every_file_may_begin_with_a_byte_order_mark(tmp_path: Path, demo_checkpoint: Path) -> None:
    def opened(root: Path) -> list[object]:
        pipeline, encoder = checkpoints.open_pipeline(root), checkpoints.open_text_encoder(root)
        configs = [pipeline.component(name).config for name in ("text_encoder", "transformer", "vae", "scheduler")]
        others = (encoder.chat_template, encoder.transformer_config, checkpoints.defaults(root), pipeline.model_index)
        return [*configs, *others]

    root = Path(shutil.copytree(demo_checkpoint, tmp_path / "marked"))
    for path in [*root.rglob("*.json"), *root.rglob("*.jinja"), *root.rglob("*.txt")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert opened(root) == opened(demo_checkpoint)
    for encoding, problem in (("utf-16", "is UTF-16"), ("utf-32", "is UTF-16 or UTF-32"), ("latin-1", "is not UTF-8")):
        (root / "text_encoder/config.json").write_text('{"model_type": "\xe9"}', encoding=encoding)
        refused_checkpoint(lambda: checkpoints.open_text_encoder(root), f"text_encoder/config.json {problem}")


def test_truncated_weights_are_refused_with_both_sizes(pipeline: Path) -> None:
    weights = pipeline / "text_encoder/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    error = refused_checkpoint(
        lambda: checkpoints.open_text_encoder(pipeline), "text_encoder/model.safetensors is truncated"
    )
    assert re.search(rf"header says {len(whole)} bytes, the file has {len(whole) - 3}", error.message)


def test_another_model_is_refused(pipeline: Path) -> None:
    write_json(pipeline / "text_encoder/config.json", {"model_type": "llama"})
    refused_checkpoint(lambda: checkpoints.open_text_encoder(pipeline), "model_type 'llama'", "expected 'qwen3'")
    write_json(pipeline / "model_index.json", {"_class_name": "FluxPipeline"})
    refused_checkpoint(lambda: checkpoints.open_pipeline(pipeline), "'FluxPipeline'", "ZImage")


def test_pickles_are_refused_with_a_remedy(pipeline: Path) -> None:
    (pipeline / "text_encoder/model.safetensors").rename(pipeline / "text_encoder/pytorch_model.bin")
    error = refused_checkpoint(
        lambda: checkpoints.open_text_encoder(pipeline), "text_encoder/pytorch_model.bin", "safe_serialization=True"
    )
    assert error.reason == "PICKLE_REFUSED"


def test_a_pickle_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.ckpt"
    model.write_bytes(b"\x80\x04")
    assert refused_checkpoint(lambda: checkpoints.open_text_encoder(model), "model.ckpt").reason == "PICKLE_REFUSED"


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    refused_checkpoint(lambda: checkpoints.open_text_encoder(tmp_path / "absent"), "does not exist")
    refused_checkpoint(lambda: checkpoints.open_text_encoder(tmp_path), "is not a checkpoint")
    refused_checkpoint(lambda: checkpoints.open_pipeline(tmp_path), "model_index.json is missing", "diffusers")
    (tmp_path / "file").write_text("x")
    refused_checkpoint(lambda: checkpoints.open_pipeline(tmp_path / "file"), "expected a folder")


def test_a_git_lfs_pointer_is_called_one(pipeline: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (pipeline / "text_encoder/model.safetensors").write_text(pointer)
    refused_checkpoint(lambda: checkpoints.open_text_encoder(pipeline), "git lfs pull")


def test_defaults_without_zrelay_json(pipeline: Path) -> None:
    assert checkpoints.defaults(pipeline) == checkpoints.GenerationDefaults(shift=6.0)


@pytest.mark.parametrize(
    ("said", "fragment"),
    [({"width": 100}, "multiple of 16"), ({"shift": "3"}, "shift"), ({"steps": 8}, "unknown keys steps"),
     ({"num_inference_steps": True}, "whole number"), ({"name": 3}, "name must be a string")],
)  # fmt: skip
def test_bad_defaults_are_refused(pipeline: Path, said: dict[str, object], fragment: str) -> None:
    write_json(pipeline / "zrelay.json", said)
    refused_checkpoint(lambda: checkpoints.defaults(pipeline), "zrelay.json", fragment)


@pytest.mark.parametrize(("rows", "limit"), [(1536, 1504), (1024, 992), (34, 32), (66, 64), (65, 32)])
def test_text_limit(rows: int, limit: int) -> None:
    assert checkpoints.text_limit([rows, 512, 512]) == limit


def test_text_limit_of_too_small_a_table() -> None:
    with pytest.raises(ValueError, match="at least 34, got 33"):
        checkpoints.text_limit([33])


@pytest.mark.parametrize(
    ("header", "data", "fragment"),
    [
        (b"{", b"", "not JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', b"", "twice"),
        (b'{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}', b"0000", "unknown dtype"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"0000", "bad shape"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"0000", "needs 8 bytes"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"00000000", "expected"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"00000", "1 bytes too many"),
        (b'{"a":{"dtype":"F32","shape":[1]}}', b"0000", "not dtype, shape and data_offsets"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: bytes, data: bytes, fragment: str) -> None:
    with pytest.raises(SafetensorsError, match=fragment):
        read_header(header_file(tmp_path / "m.safetensors", header, data))


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(SafetensorsError, match="at most"):
        read_header(tmp_path / "m.safetensors")


WHOLE = b'{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}'


@given(at=st.integers(0, len(WHOLE) + 16), junk=st.binary(min_size=1, max_size=12), cut=st.integers(0, 140))
def test_a_damaged_file_is_refused_or_read_and_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    whole = len(WHOLE).to_bytes(8, "little") + WHOLE + b"123456789"
    path.write_bytes((whole[:at] + junk + whole[at + len(junk) :])[: max(cut, 1)])
    try:
        entries = read_header(path)
    except SafetensorsError:
        return
    assert all(0 <= entry.begin <= entry.end <= path.stat().st_size for entry in entries)


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5_000, '{"a":{"dtype":[],"shape":[],"data_offsets":[0,0]}}'])
def test_json_that_breaks_parsers_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(SafetensorsError):
        read_header(header_file(tmp_path / "m.safetensors", value.encode(), b""))
