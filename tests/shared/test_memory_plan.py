"""The plan of a service's memory: which dtype, why, and the refusal with numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.refusals import refused
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_shared.errors import FailedPrecondition, OutOfMemory
from zrelay_shared.service.memory_plan import (
    OVERHEAD_BYTES,
    PlannedDevice,
    ServiceNeeds,
    Weights,
    needs_of,
    plan,
    plan_together,
)
from zrelay_shared.service.roles import EncoderConfig, GeneratorConfig, VisionConfig

GIB = 1 << 30
GENERATOR = ServiceNeeds(
    role="generator",
    model=Weights(6_139_000_000, 100_000_000, ("BF16",)),
    work={2: 3 * GIB, 4: 6 * GIB},
    least_work={2: GIB // 8, 4: GIB // 4},
    work_name="an image of 1024 x 1024",
    least_name="one of 64 x 64",
    dtype="auto",
    remedy="choose smaller default sizes in zrelay.json",
    bytes_per_token={2: 100_000, 4: 200_000},
    tick_tokens=16384,
)
"""The published transformer and VAE."""
ENCODER = replace(
    GENERATOR,
    role="encoder",
    model=Weights(4_000_000_000, 0, ("BF16",)),
    work={2: GIB // 2, 4: GIB},
    least_work={2: GIB // 2, 4: GIB},
    work_name="a batch",
    least_name="a batch",
    bytes_per_token=None,
    tick_tokens=0,
)


def cpu(gib: float, *, bfloat16: bool = False) -> PlannedDevice:
    """A CPU with this much free memory beside its reserve."""
    total = int(gib * GIB)
    return PlannedDevice("cpu", bfloat16, total, total + min(1536 << 20, int(total * 0.05)))


@pytest.mark.parametrize(
    ("gib", "bfloat16", "expected"),
    [
        (64, False, "float32"),
        (21, False, "bfloat16-weights"),
        (64, True, "bfloat16"),
        (16, True, "bfloat16"),
        (16.5, False, "bfloat16"),
    ],
)
def test_the_fastest_dtype_that_fits(gib: float, bfloat16: bool, expected: str) -> None:
    made = plan(GENERATOR, cpu(gib, bfloat16=bfloat16))
    assert made.dtype == expected
    assert made.chosen.total_bytes <= made.usable_bytes
    assert f"{made.chosen.total_bytes / GIB:.1f}" in made.reason


def test_the_reason_names_what_did_not_fit() -> None:
    reason = plan(GENERATOR, cpu(21)).reason
    assert reason.startswith("the CPU is slow in bfloat16, but float32 needs 29.7 of the 21.0 GiB that may be used")
    assert "bfloat16-weights needs 18.4" in reason


def test_where_only_small_images_fit() -> None:
    made = plan(GENERATOR, cpu(13))
    assert made.dtype == "bfloat16" and "an image of 1024 x 1024 does not fit" in made.reason
    assert made.room_bytes < GENERATOR.work[2]


def test_a_tick_has_no_more_tokens_than_fit() -> None:
    made = plan(GENERATOR, cpu(18.4))
    assert made.dtype == "bfloat16-weights"
    assert made.tick_tokens == 16384
    made = plan(replace(GENERATOR, work=GENERATOR.least_work), cpu(13.8))
    assert made.tick_tokens == made.room_bytes // 200_000 < 16384


def test_nothing_fits() -> None:
    error = refused(lambda: plan(GENERATOR, cpu(8)), OutOfMemory, reason="MEMORY_PLAN")
    assert "bfloat16 needs 12.2 GiB (11.6 for the weights" in error.message
    assert "8.0 may be used on cpu" in error.message and "--no-memory-plan" in error.message
    assert int(error.metadata["needed_bytes"]) > int(error.metadata["usable_bytes"])


def test_a_requested_dtype_that_does_not_fit_names_one_that_does() -> None:
    asked = replace(GENERATOR, dtype="float32")
    error = refused(lambda: plan(asked, cpu(20)), OutOfMemory, reason="MEMORY_PLAN")
    assert "use --dtype bfloat16-weights, which fits" in error.message
    assert plan(asked, cpu(20), check=False).dtype == "float32"
    assert plan(asked, cpu(40)).reason.startswith("as requested")


def test_weights_wider_than_bfloat16_are_not_rounded_for_float32_computation() -> None:
    mixed = replace(GENERATOR, model=replace(GENERATOR.model, stored=("BF16", "F32")))
    assert [option.dtype for option in plan(mixed, cpu(64)).options] == ["float32", "bfloat16"]
    refused(
        lambda: plan(replace(mixed, dtype="bfloat16-weights"), cpu(64)), FailedPrecondition, reason="DTYPE_UNSUPPORTED"
    )


def test_a_platform_that_reports_nothing_is_not_refused() -> None:
    made = plan(GENERATOR, PlannedDevice("cpu", False, 0, 0))
    assert made.dtype == "float32" and made.tick_tokens == 16384


def test_a_full_machine_is_refused() -> None:
    refused(lambda: plan(GENERATOR, PlannedDevice("cpu", False, 64 * GIB, 0)), OutOfMemory, reason="MEMORY_PLAN")


def test_gpus() -> None:
    assert plan(GENERATOR, PlannedDevice("cuda", True, 80 * GIB, 79 * GIB)).dtype == "bfloat16"
    old = PlannedDevice("cuda", False, 24 * GIB, 23 * GIB)
    assert plan(GENERATOR, old).dtype == "bfloat16-weights"
    refused(lambda: plan(GENERATOR, PlannedDevice("mps", True, 11 * GIB, 10 * GIB)), OutOfMemory)


def test_a_budget_counts_although_others_have_begun_to_load() -> None:
    busy = PlannedDevice("cpu", False, 24 * GIB, 2 * GIB)
    made = plan(replace(GENERATOR, budget_bytes=20 * GIB), busy)
    assert made.dtype == "bfloat16-weights" and made.usable_bytes == 20 * GIB


def test_a_budget_larger_than_the_device_is_cut() -> None:
    """`zrelay up` may have planned with a GPU that the service's torch cannot use."""
    made = plan(replace(GENERATOR, budget_bytes=76 * GIB), PlannedDevice("cpu", False, 24 * GIB, 20 * GIB))
    assert made.dtype == "bfloat16-weights" and made.usable_bytes < 24 * GIB


def test_remedies_are_those_that_help() -> None:
    encoder = replace(ENCODER, dtype="bfloat16", remedy="lower --batch-tokens")

    def remedies(needs: ServiceNeeds, device: PlannedDevice) -> str:
        return refused(lambda: plan(needs, device), OutOfMemory).message.partition("; ")[2]

    assert "--batch-tokens" not in remedies(encoder, cpu(6)), "the weights alone do not fit"
    assert "--batch-tokens" in remedies(encoder, cpu(8.1)) and "end other programs" in remedies(encoder, cpu(8.1))
    assert "raise --memory-budget-mib" in remedies(replace(encoder, budget_bytes=6 * GIB), cpu(64))
    assert "end other programs" in remedies(replace(encoder, budget_bytes=60 * GIB), cpu(6))
    assert "(ulimit -v" in remedies(encoder, replace(cpu(6), limited_by="RLIMIT_AS"))
    assert "container's memory limit" in remedies(encoder, replace(cpu(6), limited_by="control group"))
    assert "use --dtype" not in remedies(replace(encoder, dtype="float32"), cpu(6))


@pytest.mark.parametrize(
    ("gib", "encoder", "generator"),
    [
        (64, "float32", "float32"),
        (40, "float32", "bfloat16-weights"),
        (28, "bfloat16-weights", "bfloat16-weights"),
        (24, "bfloat16-weights", "bfloat16"),
    ],
)
def test_services_share_one_machine(gib: float, encoder: str, generator: str) -> None:
    device = cpu(gib)
    budgets = plan_together([ENCODER, GENERATOR], device)
    assert sum(budgets.values()) == device.usable_bytes
    chosen = {
        needs.role: plan(replace(needs, budget_bytes=budgets[needs.role]), device).dtype
        for needs in (ENCODER, GENERATOR)
    }
    assert chosen == {"encoder": encoder, "generator": generator}


def test_services_that_do_not_fit_together() -> None:
    error = refused(lambda: plan_together([ENCODER, GENERATOR], cpu(14)), OutOfMemory, reason="MEMORY_PLAN")
    assert "encoder 8.5, generator 12.2" in error.message and "smallest data types" in error.message
    fixed = [replace(ENCODER, dtype="float32"), GENERATOR]
    error = refused(lambda: plan_together(fixed, cpu(20)), OutOfMemory, reason="MEMORY_PLAN")
    assert "with the requested data types" in error.message and "use --dtype auto" in error.message


def test_only_the_blocks_of_the_layer_count() -> None:
    sizes = [needs_of(EncoderConfig(model=CHECKPOINT, hidden_layer=layer)).model for layer in (-1, -2, -3)]
    assert sizes[1].matrices - sizes[2].matrices > 0
    assert sizes[0].others > sizes[1].others, "the final norm"
    assert set(sizes[0].stored) == {"BF16"}


def test_the_demo_fits_everywhere() -> None:
    configs = [
        EncoderConfig(model=CHECKPOINT),
        GeneratorConfig(model=CHECKPOINT),
        VisionConfig(qwen3_vl=VISION_CHECKPOINT / "qwen3_vl", siglip=VISION_CHECKPOINT / "siglip"),
        VisionConfig(),
    ]
    for config in configs:
        made = plan(needs_of(config), cpu(4))
        assert made.chosen.weights_bytes < 200 << 20 and made.room_bytes < 4 * GIB - OVERHEAD_BYTES + 1


def test_weights_count_as_they_are_stored(tmp_path: Path) -> None:
    needs = needs_of(GeneratorConfig(model=CHECKPOINT))
    files = [*(CHECKPOINT / "transformer").glob("*.safetensors"), *(CHECKPOINT / "vae").glob("*.safetensors")]
    stored = sum(file.stat().st_size for file in files)
    assert 0.95 * stored < needs.model.bytes_in("bfloat16") < stored + (1 << 20)
