"""Decoding beside the next step, and what is stuck seen from outside."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.polling import until
from zrelay_generator.engine.device import DeviceThread
from zrelay_generator.engine.engine import StepEngine, run_to_end
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import ImagePixels, JobFailed
from zrelay_generator.engine.watchdog import Watchdog
from zrelay_generator.priority import Priority

from .engine_harness import EngineHarness, denoised_by, event_types
from .fixture_types import Load, MakeSpec


def held(
    decode: Callable[[Tensor], Tensor], gate: threading.Event, began: threading.Event | None = None
) -> Callable[[Tensor], Tensor]:
    """The same decoding, once the gate is open."""

    def waiting(latents: Tensor) -> Tensor:
        if began is not None:
            began.set()
        assert gate.wait(20)
        return decode(latents)

    return waiting


def test_decoding_beside_the_next_step(demo: Path, load: Load, spec: MakeSpec) -> None:
    woken: list[int] = []
    on = EngineHarness(load(demo), packs=True, changed=lambda: woken.append(1), decode_beside=True)
    on.add(spec(steps=1), "short")
    on.add(spec(steps=40), "long")
    gate = threading.Event()
    on.vae.decode = held(on.vae.decode, gate)
    for _ in range(5):
        on.tick()
    assert denoised_by(on, "long") == 5 and ImagePixels not in event_types(on, "short")
    assert not on.engine.waits
    gate.set()
    until(lambda: woken, "the engine is woken")
    on.tick()
    assert event_types(on, "short")[-1] is ImagePixels
    run_to_end(on.engine)
    assert event_types(on, "long")[-1] is ImagePixels
    on.engine.close()


def test_pictures_that_wait_for_the_decoder_can_be_cancelled(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo), packs=True, decode_beside=True)
    gate, begun, decode = threading.Event(), threading.Event(), on.vae.decode

    def begin(latents: Tensor) -> Tensor:
        begun.set()
        gate.wait(20)
        return decode(latents)

    on.vae.decode = begin
    job = on.add(spec(steps=1, num_images=4), "cancelled")
    on.tick()
    assert begun.wait(20)
    job.cancelled = True
    on.add(spec(steps=1), "next")
    on.tick()
    gate.set()
    run_to_end(on.engine)
    assert len(on.vae.latents) == 2, "the one that was under way, and the next job's"
    assert event_types(on, "next")[-1] is ImagePixels and event_types(on, "cancelled")[-1] is JobFailed
    on.engine.close()


def test_a_picture_that_is_being_decoded_can_be_cancelled(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo), decode_beside=True)
    gate = threading.Event()
    on.vae.decode = held(on.vae.decode, gate)
    job = on.add(spec(steps=1))
    on.tick()
    assert on.engine.waits
    job.cancelled = True
    gate.set()
    on.tick()
    assert on.engine.idle and event_types(on, "job")[-1] is JobFailed


def test_the_most_urgent_image_is_decoded_first(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo), packs=True, decode_beside=True)
    gate, began = threading.Event(), threading.Event()
    on.vae.decode = held(on.vae.decode, gate, began)
    on.add(spec(steps=1), "first")
    on.tick()
    assert began.wait(20)
    on.add(replace(spec(steps=1), priority=Priority.BATCH), "batch")
    on.add(replace(spec(steps=1), priority=Priority.INTERACTIVE), "urgent")
    on.tick()
    gate.set()
    run_to_end(on.engine)
    ended = [name for name, event in on.events if isinstance(event, ImagePixels)]
    assert ended == ["first", "urgent", "batch"]
    on.engine.close()


def test_a_decode_that_did_not_fit_beside_a_step_is_tried_by_itself(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo), decode_beside=True)
    decode, threads = on.vae.decode, list[str]()

    def crowded(latents: Tensor) -> Tensor:
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(latents)

    on.vae.decode = crowded
    on.paint(spec(steps=1))
    assert event_types(on, "job-0")[-1] is ImagePixels
    assert threads[0].startswith("decode") and not threads[1].startswith("decode")


def test_a_step_that_never_ends_is_seen_from_outside() -> None:
    clock = iter([100.0, 150.0, 170.0])
    watchdog = Watchdog(lambda: next(clock))
    assert watchdog.overdue_s == 0.0
    with watchdog.unit(0.1):
        assert watchdog.overdue_s == 0.0
        assert watchdog.overdue_s == pytest.approx(10.0)
    assert watchdog.overdue_s == 0.0


def test_a_decode_beside_a_step_that_never_ends_is_seen_as_well(demo: Path, load: Load, spec: MakeSpec) -> None:
    now = [0.0]
    on = EngineHarness(load(demo), decode_beside=True, clock=lambda: now[0])
    gate, began = threading.Event(), threading.Event()
    on.vae.decode = held(on.vae.decode, gate, began)
    on.add(spec(steps=1))
    on.tick()
    assert began.wait(20) and on.engine.overdue_s == 0.0
    now[0] = 3600.0
    assert on.engine.overdue_s > 3000.0
    gate.set()
    run_to_end(on.engine)
    assert on.engine.overdue_s == 0.0
    on.engine.close()


def test_the_device_thread_says_when_it_is_not_well(demo: Path, load: Load) -> None:
    thread = DeviceThread(1)
    assert thread.problem == ""

    def engine() -> StepEngine:
        return StepEngine(load(demo), 1 << 20, JobEstimator(), lambda jobs, tokens: None, lambda job, event: None)

    thread.start(engine).result(20)
    assert thread.alive and thread.problem == ""
    thread.stop()
    thread.join(20)
    assert not thread.alive and thread.problem == "", "it was asked to end"
