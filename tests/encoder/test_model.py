"""The model and its batches: a batch changes results only by rounding, and only the needed blocks are loaded."""

from pathlib import Path

import pytest
import torch

from tests.encoder.helpers import BLOCKS, LoadedEncoder, load, loaded
from tests.helpers.comparisons import largest_token_difference
from tests.helpers.refusals import refused
from zrelay_encoder.embedding import EmbeddingTask, batch_ranges, embed_sequences
from zrelay_shared.errors import Cancelled, FailedPrecondition, OutOfMemory
from zrelay_shared.layers import LayerPlan, layer_plan

PROMPTS = ["a", "two red squares", "a green star above a yellow ring " * 6, "a", "ünïcödé"]


@pytest.fixture
def encoder(tiny: Path) -> LoadedEncoder:
    return loaded(tiny)


def test_several_prompts_equal_one_by_one(encoder: LoadedEncoder) -> None:
    together = encoder.encode(*PROMPTS)
    for prompt, ours in zip(PROMPTS, together, strict=True):
        assert largest_token_difference(ours, encoder.encode(prompt)[0]) < 1e-5


def test_deterministic_is_bitwise(encoder: LoadedEncoder) -> None:
    ids = [(1, 2, 3), (4,) * 70, (5, 6)]
    for one, ours in zip(ids, encoder.embed(ids, deterministic=True), strict=True):
        assert torch.equal(ours, encoder.embed([one])[0])


def test_states_do_not_see_what_comes_after(encoder: LoadedEncoder) -> None:
    long, short = encoder.embed([tuple(range(40)), tuple(range(25))])
    assert largest_token_difference(short, long[:25]) < 1e-5


def test_only_the_needed_blocks_are_loaded(tiny: Path) -> None:
    sizes = {layer: sum(p.numel() for p in loaded(tiny, layer).encoder.model.parameters()) for layer in (-1, -2, -3)}
    block = sizes[-2] - sizes[-3]
    norm = 32
    assert sizes[-1] - sizes[-2] == block + norm
    embedding = 768 * 32
    assert sizes[-2] == embedding + (BLOCKS - 1) * block
    assert not any(name.startswith(("norm", "lm_head")) for name in loaded(tiny).encoder.model.state_dict())


def test_a_shallower_layer_runs_on_a_deeper_model(tiny: Path) -> None:
    [expected] = loaded(tiny, -4).encode("a ring", hidden_layer=-4)
    assert torch.equal(loaded(tiny, -1).encode("a ring", hidden_layer=-4)[0], expected)


def test_layer_plan() -> None:
    assert layer_plan(36, -2) == LayerPlan(35, False)
    assert layer_plan(36, -1) == LayerPlan(36, True)
    assert layer_plan(36, -36) == LayerPlan(1, False)
    assert layer_plan(36, -2).within(layer_plan(36, -1))
    assert not layer_plan(36, -1).within(LayerPlan(36, False))
    for bad in (0, -37):
        with pytest.raises(ValueError, match=f"expected -36 to -1, got {bad}"):
            layer_plan(36, bad)


def test_the_model_refuses_what_it_cannot_run(encoder: LoadedEncoder) -> None:
    model = encoder.encoder.model
    with pytest.raises(ValueError, match="at least one token"):
        model([[1], []], model.plan)
    with pytest.raises(ValueError, match="within"):
        model([[1]], LayerPlan(BLOCKS, True))


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [([], 4, []), ([9], 4, [(0, 1)]), ([2, 2, 2], 4, [(0, 2), (2, 3)]), ([1, 9, 1, 1], 4, [(0, 1), (1, 2), (2, 4)]),
     ([1, 1], 1, [(0, 1), (1, 2)])],
)  # fmt: skip
def test_batch_ranges(lengths: list[int], budget: int, expected: list[tuple[int, int]]) -> None:
    assert list(batch_ranges(lengths, budget)) == expected


def test_cancellation_stops_before_the_next_forward_pass(encoder: LoadedEncoder) -> None:
    passes = []
    hook = encoder.encoder.model.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    task = EmbeddingTask(((1,), (2, 3), (4,)), encoder.encoder.model.plan, torch.float32, deterministic=True)
    try:
        refused(lambda: embed_sequences(encoder.encoder, task, 4096, cancelled=lambda: len(passes) == 2), Cancelled)
    finally:
        hook.remove()
    assert passes == [1, 1]


def test_running_out_of_memory_says_what_would_fit(tiny: Path) -> None:
    encoder = load(tiny)

    def exhaust(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    hook = encoder.encoder.model.layers[2].register_forward_pre_hook(exhaust)
    error = refused(lambda: encoder.embed([(1,) * 40]), OutOfMemory, match="at most about 20")
    assert error.retry_after_s is None and error.metadata["fits_tokens"] == "20"
    hook.remove()
    assert encoder.embed([(1,) * 40])[0].shape == (40, 32)


def test_an_overflow_names_the_remedy(tiny: Path) -> None:
    encoder = load(tiny)
    encoder.encoder.model.embed_tokens.weight.data[3] = 1e6
    refused(
        lambda: encoder.embed([(3,)], dtype=torch.float16),
        FailedPrecondition,
        reason="STATES_NOT_FINITE",
        match="computed in float32, requested in float16; request bfloat16$",
    )
    encoder.encoder.model.embed_tokens.weight.data[3] = torch.inf
    error = refused(lambda: encoder.embed([(3,)]), FailedPrecondition, reason="STATES_NOT_FINITE")
    assert "no other dtype helps" in error.message and "--dtype" not in error.message
