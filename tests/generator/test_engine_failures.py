"""What fails in the engine fails alone: bad values, a full device, bugs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zrelay_generator.engine.events import ImagePixels, JobFailed
from zrelay_generator.features.protocol import JobSpec, Prompt
from zrelay_shared.errors import FailedPrecondition, InternalError, OutOfMemory, ZrelayError

from .engine_harness import EngineHarness, event_types
from .fixture_types import Load, MakeSpec


def test_latents_that_are_not_finite_fail_the_job_alone(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    bad = replace(spec(steps=3), prompt=Prompt(torch.full((4, 128), torch.nan)))
    on.paint(bad, spec(steps=1))
    (event,) = [event for job, event in on.events if job == "job-0" and isinstance(event, JobFailed)]
    assert isinstance(event.error, FailedPrecondition)
    assert event.error.reason == "LATENTS_NOT_FINITE" and "after step 1 of 3" in event.error.message
    assert event_types(on, "job-1")[-1] is ImagePixels


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("shape '[3]' is invalid"), InternalError),
        (KeyError("a bug"), InternalError),
        (FloatingPointError("decoded"), FailedPrecondition),
    ],
)
def test_a_failing_device_ends_the_job_and_not_the_engine(
    error: Exception, expected: type[ZrelayError], demo: Path, load: Load, spec: MakeSpec
) -> None:
    on = EngineHarness(load(demo))
    decode, on.vae.decode = on.vae.decode, lambda latents: (_ for _ in ()).throw(error)
    on.paint(spec(steps=1))
    (_, event) = on.events[-1]
    assert isinstance(event, JobFailed) and type(event.error) is expected
    assert "Traceback" not in event.error.message and "invalid" not in event.error.message
    on.vae.decode = decode
    on.paint(spec(steps=1))
    assert isinstance(on.events[-1][1], ImagePixels)


def test_out_of_memory_says_what_would_fit(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    on.vae.decode = lambda latents: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))
    on.add(JobSpec(spec().prompt, replace(spec().sampling, width=512, height=256)))
    for _ in range(20):
        on.tick()
    _, event = on.events[-1]
    assert isinstance(event, JobFailed)
    error = event.error
    assert (error.metadata["fits_width"], error.metadata["fits_height"]) == ("352", "176")
    assert error.retry_after_s is None and "352 x 176" in error.message


class Failing:
    """A forward that fails wherever `when` says so of its segments."""

    def __init__(self, transformer: Any, when: Callable[[Sequence[Any]], bool], error: Exception) -> None:
        self._transformer, self._when, self._error = transformer, when, error
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def forward(self, segments: Sequence[Any]) -> Any:
        self.calls.append(len(segments))
        if self._when(segments):
            raise self._error
        return self._transformer.forward(segments)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("a bug")])
def test_company_that_fails_is_taken_apart_and_only_the_guilty_fails(
    error: Exception, demo: Path, load: Load, spec: MakeSpec
) -> None:
    model = load(demo)
    guilty = replace(spec(steps=2), sampling=replace(spec(steps=2).sampling, width=80))
    failing = Failing(model.transformer, lambda segments: any(s.latents.shape[2] == 10 for s in segments), error)
    on = EngineHarness(replace(model, transformer=failing), packs=True)  # type: ignore[arg-type]
    on.paint(spec(steps=2), guilty, spec(steps=2, seed=9))
    assert event_types(on, "job-0")[-1] is event_types(on, "job-2")[-1] is ImagePixels
    (failed,) = [event for job, event in on.events if isinstance(event, JobFailed)]
    assert event_types(on, "job-1")[-1] is JobFailed
    assert isinstance(failed.error, OutOfMemory if "memory" in str(error) else InternalError)
    assert failing.calls[:4] == [3, 1, 1, 1]


def test_a_tick_that_was_too_large_is_not_tried_again(demo: Path, load: Load, spec: MakeSpec) -> None:
    model, error = load(demo), torch.OutOfMemoryError("CUDA out of memory.")
    failing = Failing(model.transformer, lambda segments: len(segments) > 2, error)
    on = EngineHarness(replace(model, transformer=failing), packs=True)  # type: ignore[arg-type]
    on.paint(*(spec(steps=3, seed=seed) for seed in range(4)))
    assert not [event for _, event in on.events if isinstance(event, JobFailed)]
    assert max(failing.calls[2:]) <= 3 and failing.calls.count(4) == 1


def test_a_job_that_cannot_begin_fails_alone(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo), packs=True)
    on.paint(replace(spec(steps=2), prompt=Prompt(torch.zeros(4, 99))), spec(steps=2))
    assert event_types(on, "job-0") == [JobFailed] and event_types(on, "job-1")[-1] is ImagePixels
