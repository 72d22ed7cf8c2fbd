"""The digest describes the weights, not how they are stored."""

import json
import os
from pathlib import Path

import pytest

from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.weight_files import weights_digest

TENSORS = {"embed_tokens.weight": b"embd", "layers.0.w": b"zero", "layers.1.w": b"one!", "norm.weight": b"norm"}


@pytest.fixture
def demo_checkpoint() -> Path:
    return Path(__file__).parents[2] / "demo/zrelay_demo/checkpoint"


def component(folder: Path, **shards: dict[str, bytes]) -> ComponentFolder:
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        described, at = {}, 0
        for key, data in tensors.items():
            described[key] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at := at + len(data)]}
        header = json.dumps(described).encode()
        whole = len(header).to_bytes(8, "little") + header + b"".join(tensors.values())
        (folder / f"{name}.safetensors").write_bytes(whole)
    files = tuple(folder / f"{name}.safetensors" for name in sorted(shards))
    return ComponentFolder("text_encoder", folder, {}, files, None)


def test_golden(tmp_path: Path) -> None:
    assert (
        weights_digest(component(tmp_path / "a", model=TENSORS))
        == "73241272d4f0ca7cfbee51bd1c9d326b1327d443ce69ce8e0ebff94c2d78c1ce"
    )


def test_sharding_prefix_and_lm_head_do_not_count(tmp_path: Path) -> None:
    plain = weights_digest(component(tmp_path / "a", model=TENSORS))
    prefixed = {f"model.{name}": data for name, data in TENSORS.items()}
    names = list(prefixed)
    assert plain == weights_digest(component(tmp_path / "b", model=prefixed))
    first = {name: prefixed[name] for name in names[2:]}
    second = {name: prefixed[name] for name in names[:2]} | {"lm_head.weight": b"head"}
    assert plain == weights_digest(component(tmp_path / "c", s1=first, s2=second))


@pytest.mark.parametrize(
    "name",
    [
        "rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.visual.rotary_pos_emb.inv_freq",
        "text_model.embeddings.position_ids",
    ],
)
def test_tables_that_follow_from_the_configuration_do_not_count(tmp_path: Path, name: str) -> None:
    plain = weights_digest(component(tmp_path / "a", model=TENSORS))
    assert plain == weights_digest(component(tmp_path / "b", model=TENSORS | {name: b"table"}))
    assert plain != weights_digest(component(tmp_path / "c", model=TENSORS | {f"{name}.weight": b"other"}))


@pytest.mark.parametrize("change", [{"layers.1.w": b"One!"}, {"layers.2.w": b"more"}, {"layers.1.w": b"longer"}])
def test_every_byte_name_and_shape_counts(tmp_path: Path, change: dict[str, bytes]) -> None:
    plain = weights_digest(component(tmp_path / "a", model=TENSORS))
    assert plain != weights_digest(component(tmp_path / "b", model=TENSORS | change))


def test_a_kept_digest_reads_no_weights(tmp_path: Path) -> None:
    read: list[int] = []
    weights = component(tmp_path / "a", model=TENSORS)
    first = weights_digest(weights, cache=tmp_path / "cache", progress=read.append)
    assert sum(read) == 16
    assert weights_digest(weights, cache=tmp_path / "cache", progress=read.append) == first
    assert sum(read) == 16


def test_a_touched_file_is_read_again(tmp_path: Path) -> None:
    weights, cache = component(tmp_path / "a", model=TENSORS), tmp_path / "cache"
    first = weights_digest(weights, cache=cache)
    changed = component(tmp_path / "a", model=TENSORS | {"layers.1.w": b"two!"})
    os.utime(changed.weights[0], ns=(1, 1))
    assert weights_digest(changed, cache=cache) == weights_digest(changed) != first


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", b'{"version": 1, "files": [], "digest": 7}'])
def test_a_damaged_cache_is_ignored_and_mended(tmp_path: Path, damage: bytes) -> None:
    weights, cache, read = component(tmp_path / "a", model=TENSORS), tmp_path / "cache", list[int]()
    first = weights_digest(weights, cache=cache)
    [entry] = cache.iterdir()
    entry.write_bytes(damage)
    assert weights_digest(weights, cache=cache) == first
    assert weights_digest(weights, cache=cache, progress=read.append) == first
    assert read == []


def test_a_cache_that_cannot_be_written_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert weights_digest(component(tmp_path / "a", model=TENSORS), cache=tmp_path / "cache")
    assert "cannot be cached" in caplog.text
