"""One ragged sequence: what shares the batch changes nothing but rounding, and only the needed blocks are there."""

from pathlib import Path

import pytest
import torch

from zrelay_encoder.encoder import batches
from zrelay_shared.errors import Cancelled, FailedPrecondition, OutOfMemory
from zrelay_shared.layers import LayerPlan, layer_plan

from .conftest import BLOCKS, Loaded, largest_difference, load

PROMPTS = ["a", "two red squares", "a green star above a yellow ring " * 6, "a", "ünïcödé"]


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Loaded:
    return load(tiny)


def test_several_prompts_equal_one_by_one(loaded: Loaded) -> None:
    together = loaded.encode(*PROMPTS)
    for prompt, ours in zip(PROMPTS, together, strict=True):
        assert largest_difference(ours, loaded.encode(prompt)[0]) < 1e-5


def test_deterministic_is_bitwise(loaded: Loaded) -> None:
    ids = [(1, 2, 3), (4,) * 70, (5, 6)]
    plan = loaded.encoder.plan(-2)
    together = loaded.encoder.encode(ids, plan, torch.float32, deterministic=True)
    for one, ours in zip(ids, together, strict=True):
        assert torch.equal(ours, loaded.encoder.encode([one], plan, torch.float32)[0])


def test_states_do_not_see_what_comes_after(loaded: Loaded) -> None:
    plan = loaded.encoder.plan(-2)
    long, short = loaded.encoder.encode([tuple(range(40)), tuple(range(25))], plan, torch.float32)
    assert largest_difference(short, long[:25]) < 1e-5


def test_only_the_needed_blocks_are_loaded(tiny: Path) -> None:
    sizes = {layer: sum(p.numel() for p in load(tiny, hidden_layer=layer).encoder.model.parameters())
             for layer in (-1, -2, -3)}  # fmt: skip
    block = sizes[-2] - sizes[-3]
    norm = 32
    assert sizes[-1] - sizes[-2] == block + norm
    embedding = 768 * 32
    assert sizes[-2] == embedding + (BLOCKS - 1) * block
    assert not any(name.startswith(("norm", "lm_head")) for name in load(tiny).encoder.model.state_dict())


def test_a_shallower_layer_runs_on_a_deeper_model(tiny: Path) -> None:
    [wanted] = load(tiny, hidden_layer=-4).encode("a ring", hidden_layer=-4)
    assert torch.equal(load(tiny, hidden_layer=-1).encode("a ring", hidden_layer=-4)[0], wanted)


def test_layer_plan() -> None:
    assert layer_plan(36, -2) == LayerPlan(35, False)
    assert layer_plan(36, -1) == LayerPlan(36, True)
    assert layer_plan(36, -36) == LayerPlan(1, False)
    assert layer_plan(36, -2).within(layer_plan(36, -1))
    assert not layer_plan(36, -1).within(LayerPlan(36, False))
    for bad in (0, -37):
        with pytest.raises(ValueError, match=f"expected -36 to -1, got {bad}"):
            layer_plan(36, bad)


def test_the_model_refuses_what_it_cannot_run(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        loaded.encoder.model([[1], []], loaded.encoder.model.plan)
    with pytest.raises(ValueError, match="within"):
        loaded.encoder.model([[1]], LayerPlan(BLOCKS, True))


@pytest.mark.parametrize(
    ("lengths", "budget", "wanted"),
    [([], 4, []), ([9], 4, [(0, 1)]), ([2, 2, 2], 4, [(0, 2), (2, 3)]), ([1, 9, 1, 1], 4, [(0, 1), (1, 2), (2, 4)]),
     ([1, 1], 1, [(0, 1), (1, 2)])],
)  # fmt: skip
def test_batches(lengths: list[int], budget: int, wanted: list[tuple[int, int]]) -> None:
    assert list(batches(lengths, budget)) == wanted


def test_a_caller_that_went_away_stops_between_forwards(loaded: Loaded) -> None:
    with pytest.raises(Cancelled):
        loaded.encoder.encode([[1]], loaded.encoder.plan(-2), torch.float32, cancelled=lambda: True)


def test_running_out_of_memory_says_what_would_fit(tiny: Path) -> None:
    full = load(tiny).encoder

    def too_much(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    hook = full.model.layers[2].register_forward_pre_hook(too_much)
    with pytest.raises(OutOfMemory, match="at most about 20") as caught:
        full.encode([[1] * 40], full.plan(-2), torch.float32)
    assert caught.value.retry_after_s is None and caught.value.metadata["fits_tokens"] == "20"
    hook.remove()
    assert full.encode([[1] * 40], full.plan(-2), torch.float32)[0].shape == (40, 32)


def test_an_overflow_is_told_with_the_way_out(tiny: Path) -> None:
    broken = load(tiny).encoder
    broken.model.embed_tokens.weight.data[3] = 1e6
    with pytest.raises(FailedPrecondition, match="--dtype bfloat16 or float32") as caught:
        broken.encode([[3]], broken.plan(-2), torch.float16)
    assert caught.value.reason == "STATES_NOT_FINITE"
