"""The cost model: what it learns from measurements, and what it says of jobs."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zrelay_generator.cost.cache import CostCache
from zrelay_generator.cost.fit import DurationFit
from zrelay_generator.cost.model import CostModel, MemoryModel, Size
from zrelay_generator.engine.calibrate import calibrate, memory_model
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.engine.stepping import begin
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec
from zrelay_generator.features.protocol import JobSpec, Prompt
from zrelay_generator.features.registry import features_of, step_sizes
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec
from zrelay_generator.model.sequence import segment_size
from zrelay_generator.model.transformer import Prediction, Segment
from zrelay_shared.errors import OutOfMemory

from .engine_harness import EngineHarness
from .fixture_types import Load, MakeEmbeds, MakeSampling, MakeSpec


@given(st.floats(0, 0.1), st.floats(1e-7, 1e-3), st.floats(0, 1e-8))
def test_fit_recovers_known_coefficients(base: float, token: float, square: float) -> None:
    fit = DurationFit(main=1, terms=3)
    for tokens in (64, 96, 512, 1056, 4160, 16_448):
        fit.observe((1.0, tokens, tokens**2), base + token * tokens + square * tokens**2)
    for tokens in (64, 300, 2000, 16_000, 32_000):
        expected = base + token * tokens + square * tokens**2
        assert fit.seconds((1.0, tokens, tokens**2)) == pytest.approx(expected, rel=0.15)
    assert fit.coefficients is not None and min(fit.coefficients) >= 0.0


def test_one_measurement_is_taken_as_linear() -> None:
    fit = DurationFit(main=1, terms=3)
    assert fit.seconds((1.0, 10.0, 100.0)) == 0.0
    fit.observe((1.0, 100.0, 10_000.0), 1.0)
    assert fit.seconds((1.0, 50.0, 2_500.0)) == pytest.approx(0.5)


def test_other_sizes_are_not_forgotten_and_what_changes_is_followed() -> None:
    fit = DurationFit(main=1, terms=2)
    fit.observe((1.0, 100.0), 1.0)
    fit.observe((1.0, 10_000.0), 100.0)
    for _ in range(1000):
        fit.observe((1.0, 100.0), 1.0)
    assert fit.seconds((1.0, 10_000.0)) == pytest.approx(100.0, rel=0.02)
    for _ in range(30):
        fit.observe((1.0, 100.0), 2.0)
    assert fit.seconds((1.0, 100.0)) == pytest.approx(2.0, rel=0.4)


def test_sizes_of_steps(sampling: MakeSampling, embeds: MakeEmbeds) -> None:
    skip = SkipLayerSpec(2.0, frozenset({2, 3}), 0.0, 0.5)
    asked = sampling(width=64, height=64, steps=4, guidance_scale=2.0, cfg_truncation=0.5, first_step=0)
    spec = JobSpec(Prompt(embeds(20, 8)), asked, features=(GuidanceSpec(Prompt(embeds(40, 8))), skip))
    plain, negative = segment_size(64, 64, 20), segment_size(64, 64, 40)
    assert (plain, negative) == (Size(64, 64**2), Size(96, 96**2))
    timesteps = asked.schedule.timesteps
    found = step_sizes(spec, features_of(spec), 6)
    for number, (size, timestep) in enumerate(zip(found, timesteps, strict=True)):
        expected = plain
        if timestep <= 0.5:
            expected += negative
        if number < 2:
            expected += plain * (2 / 6)  # blocks 4 and 5 of six
        assert size.tokens == pytest.approx(expected.tokens) and size.squares == pytest.approx(expected.squares)
    late = replace(spec, sampling=replace(asked, first_step=3))
    assert len(step_sizes(late, features_of(late), 6)) == 1


def test_remaining_seconds_follow_progress(sampling: MakeSampling, embeds: MakeEmbeds) -> None:
    estimator = JobEstimator()
    job = DeviceJob("a", JobSpec(Prompt(embeds(4, 8)), sampling(steps=9, num_images=2)), 1)
    assert estimator.remaining_s(job) == 0.0 and not estimator.cost.measured
    estimator.cost.observe_forward(Size(96, 0), 1.0)
    estimator.cost.observe_decode(128 * 128, 0.5)
    assert estimator.remaining_s(job) == pytest.approx(19.0)
    assert estimator.estimate(job.spec).seconds == pytest.approx(19.0)
    job.images[0].done = 9
    assert estimator.remaining_s(job) == pytest.approx(10.0)
    job.images[0].decoded = True
    assert estimator.remaining_s(job) == pytest.approx(9.5)
    estimator.cost.reset()
    assert not estimator.cost.measured


def test_memory(sampling: MakeSampling, embeds: MakeEmbeds, demo: Path, load: Load) -> None:
    model = load(demo)
    estimator = JobEstimator(CostModel(memory_model(model)))
    assert estimator.cost.memory.layers == 6 and estimator.cost.memory.bytes_per_token > 128 * 4
    small, large = (JobSpec(Prompt(embeds(4, 8)), sampling(width=side, height=side)) for side in (64, 2048))
    assert estimator.estimate(large).memory_bytes > 500 * estimator.estimate(small).memory_bytes
    needed = estimator.estimate(large).memory_bytes
    assert estimator.fits(large, needed) and not estimator.fits(large, 1 << 20)
    assert estimator.fits(large, 0), "a platform that does not report its memory"
    estimator.check_fits(small, torch.device("cpu"))
    hungry = JobEstimator(CostModel(MemoryModel(6, 1, 1 << 40)))
    with pytest.raises(OutOfMemory, match="ask for at most about 1440 x 1440") as refused:
        hungry.check_fits(large, torch.device("cpu"))
    assert refused.value.metadata["fits_width"] == "1440" and refused.value.retry_after_s is None
    hungry.check_fits(large, torch.device("cpu"), idle_bytes=1 << 63)


def test_a_vae_has_an_attention_of_its_own() -> None:
    cost = CostModel()
    for side in (64, 128, 256, 512):
        cost.observe_decode(side**2, 0.005 + 1e-6 * side**2 + 2e-12 * side**4)
    assert cost.decode_s(1024**2) == pytest.approx(0.005 + 1.05 + 2.2, rel=0.15)
    assert cost.snapshot().decode_s_per_pixel == pytest.approx(1e-6, rel=0.3)


def test_a_device_is_measured_when_it_is_loaded(demo: Path, load: Load) -> None:
    cost = CostModel()
    calibrate(load(demo), cost, 64)
    snapshot = cost.snapshot()
    assert cost.measured and snapshot.forward_s_per_token > 0.0 and snapshot.decode_s_per_pixel > 0.0
    assert snapshot.bytes_per_pixel > 0


def test_a_slow_device_is_measured_by_its_first_image_alone(demo: Path, load: Load) -> None:
    cost, model = CostModel(), load(demo)
    forwards: list[int] = []
    forward = model.transformer.forward

    def counted(segments: Sequence[Segment]) -> list[Prediction]:
        forwards.append(len(segments))
        return forward(segments)

    model.transformer.forward = counted  # type: ignore[method-assign]
    calibrate(model, cost, 64, budget_s=0.0)
    assert forwards == [1]
    assert cost.measured and cost.forward_s(Size(96, 0)) > 0.0 and cost.snapshot().decode_s_per_pixel > 0.0


def test_the_times_of_a_slow_cpu_are_kept_for_the_next_start(demo: Path, load: Load, tmp_path: Path) -> None:
    model, first, again, other = load(demo), CostModel(), CostModel(), CostModel()
    cache = CostCache(tmp_path / "cache", ("model", "bfloat16"))
    calibrate(model, first, 64, cache, budget_s=0.0, kept_from_s=math.inf)
    assert not list(tmp_path.iterdir())  # it was fast enough
    calibrate(model, first, 64, cache, budget_s=0.0, kept_from_s=0.0, own_share=0.0)
    calibrate(model, again, 64, cache)
    assert again.snapshot() == first.snapshot() and again.forward_s(Size(96, 0)) == first.forward_s(Size(96, 0)) > 0.0
    calibrate(model, other, 64, CostCache(tmp_path / "cache", ("model", "float32")), budget_s=0.0)
    assert other.snapshot() != first.snapshot()


def test_times_that_other_programs_made_long_are_not_kept(demo: Path, load: Load, tmp_path: Path) -> None:
    cache = CostCache(tmp_path, ("model",))
    calibrate(load(demo), CostModel(), 64, cache, budget_s=0.0, kept_from_s=0.0, own_share=math.inf)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        "{}",
        '{"version": 1, "forwards": [[96, 9216, 0.5]], "decodes": []}',
        '{"version": 1, "forwards": [[96, 9216, -0.5]], "decodes": [[4096, 0.1]]}',
        '{"version": 1, "forwards": [[96, 9216, NaN]], "decodes": [[4096, 0.1]]}',
        '{"version": 1, "forwards": [[96, 9216, 1e300]], "decodes": [[4096, 0.1]]}',
        '{"version": 1, "forwards": [[96, true]], "decodes": [[4096, 0.1]]}',
        '{"version": 2, "forwards": [[96, 9216, 0.5]], "decodes": [[4096, 0.1]]}',
    ],
)
def test_a_damaged_file_of_times_counts_as_none(content: str, tmp_path: Path) -> None:
    cost, cache = CostModel(), CostCache(tmp_path, ("model",))
    cost.observe_forward(Size(96, 9216), 0.5)
    cost.observe_decode(4096, 0.1)
    cache.keep(cost)
    assert cache.restore(CostModel())
    (kept,) = tmp_path.iterdir()
    kept.write_text(content)
    restored = CostModel()
    assert not cache.restore(restored) and not restored.measured


def test_what_goes_into_the_vae_counts_until_the_job_has_begun(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    on.estimator.cost.observe_forward(Size(96, 0), 1.0)
    on.estimator.cost.observe_decode(64 * 64, 1.0)
    plain = spec(steps=2, first_step=0)
    start = replace(plain, features=(ImageToImageSpec(torch.zeros(3, 64, 64, dtype=torch.uint8), "0" * 64, 1.0),))
    assert on.estimator.estimate(start).seconds == pytest.approx(on.estimator.estimate(plain).seconds + 1.0)
    job = DeviceJob("a", start, 1)
    assert on.estimator.remaining_s(job) == pytest.approx(on.estimator.estimate(start).seconds)
    with torch.inference_mode():
        begin(job, load(demo))
    assert on.estimator.remaining_s(job) == pytest.approx(on.estimator.estimate(plain).seconds)
