"""Weights in bfloat16 and computation in float32 make the embeddings of float32 weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.encoder.helpers import load
from tests.helpers.comparisons import largest_token_difference
from tests.helpers.refusals import refused
from zrelay_demo import CHECKPOINT
from zrelay_shared import fingerprint
from zrelay_shared.errors import FailedPrecondition

PROMPTS = ["a", "two red squares", "a green star above a yellow ring " * 6, "ünïcödé"]


@pytest.mark.parametrize("hidden_layer", [-1, -2])
def test_equals_float32(hidden_layer: int) -> None:
    whole = load(CHECKPOINT, hidden_layer=hidden_layer)
    kept = load(CHECKPOINT, hidden_layer=hidden_layer, dtype="bfloat16-weights")
    expected = whole.encode(*PROMPTS, hidden_layer=hidden_layer)
    for ours, theirs in zip(kept.encode(*PROMPTS, hidden_layer=hidden_layer), expected, strict=True):
        assert ours.dtype is torch.float32
        assert largest_token_difference(ours, theirs) < 1e-5


def test_the_embeddings_are_equivalent_to_those_of_float32() -> None:
    """The values of the weights and of the computation are the same; only the order of sums in a product may differ."""
    whole, kept = (load(CHECKPOINT, dtype=dtype).encoder.fingerprint for dtype in ("float32", "bfloat16-weights"))
    assert replace(kept, compute_dtype="float32") == whole
    relation = fingerprint.compare(whole, kept)
    assert relation.relation == fingerprint.EQUIVALENT and "bfloat16-weights" in relation.differences[0]


def test_layers_and_embeddings_stay_in_bfloat16() -> None:
    model = load(CHECKPOINT, dtype="bfloat16-weights").encoder.model
    for name, parameter in model.named_parameters():
        assert parameter.dtype is (torch.bfloat16 if parameter.ndim == 2 else torch.float32), name


def test_weights_of_another_dtype_are_refused(tiny: Path) -> None:
    error = refused(lambda: load(tiny, dtype="bfloat16-weights"), FailedPrecondition)
    assert error.reason == "DTYPE_UNSUPPORTED" and "F32" in error.message
