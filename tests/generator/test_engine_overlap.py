"""Decoding beside the next step, and what is stuck seen from outside."""

import threading
import time

import pytest
import torch

from zrelay_generator.engine.device import DeviceThread
from zrelay_generator.engine.engine import StepEngine, run_to_end
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import ImagePixels, JobFailed
from zrelay_generator.engine.watchdog import Watchdog

from .benches import denoised_by, kinds


def test_decoding_beside_the_next_step(demo, load, bench, spec):
    woken = []
    on = bench(load(demo), packs=True, changed=lambda: woken.append(1), decode_beside=True)
    on.add(spec(steps=1), "short")
    on.add(spec(steps=40), "long")
    decode, gate = on.vae.decode, threading.Event()
    on.vae.decode = lambda latents: gate.wait(20) and decode(latents)
    for _ in range(5):
        on.tick()
    assert denoised_by(on, "long") == 5 and ImagePixels not in kinds(on, "short")
    assert not on.engine.waits
    gate.set()
    while not woken:
        time.sleep(0.01)
    on.tick()
    assert kinds(on, "short")[-1] is ImagePixels
    run_to_end(on.engine)
    assert kinds(on, "long")[-1] is ImagePixels
    on.engine.close()


def test_pictures_that_wait_for_the_decoder_can_be_cancelled(demo, load, bench, spec):
    on = bench(load(demo), packs=True, decode_beside=True)
    gate, begun, decode = threading.Event(), threading.Event(), on.vae.decode
    on.vae.decode = lambda latents: (begun.set(), gate.wait(20), decode(latents))[-1]
    job = on.add(spec(steps=1, num_images=4), "cancelled")
    on.tick()
    assert begun.wait(20)
    job.cancelled = True
    on.tick()
    on.add(spec(steps=1), "next")
    gate.set()
    run_to_end(on.engine)
    assert len(on.vae.latents) == 2, "the one that was under way, and the next job's"
    assert kinds(on, "next")[-1] is ImagePixels and kinds(on, "cancelled")[-1] is JobFailed
    on.engine.close()


def test_a_picture_that_is_being_decoded_can_be_cancelled(demo, load, bench, spec):
    on = bench(load(demo), decode_beside=True)
    gate, decode = threading.Event(), on.vae.decode
    on.vae.decode = lambda latents: gate.wait(20) and decode(latents)
    job = on.add(spec(steps=1))
    on.tick()
    assert on.engine.waits
    job.cancelled = True
    gate.set()
    on.tick()
    assert on.engine.idle and kinds(on, "job")[-1] is JobFailed


def test_a_decode_that_did_not_fit_beside_a_step_is_tried_by_itself(demo, load, bench, spec):
    on = bench(load(demo), decode_beside=True)
    decode, threads = on.vae.decode, []

    def crowded(latents):
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(latents)

    on.vae.decode = crowded
    on.paint(spec(steps=1))
    assert kinds(on, "job-0")[-1] is ImagePixels
    assert threads[0].startswith("decode") and not threads[1].startswith("decode")


def test_a_step_that_never_ends_is_seen_from_outside():
    clock = iter([100.0, 150.0, 170.0])
    watchdog = Watchdog(lambda: next(clock))
    assert watchdog.overdue_s == 0.0
    with watchdog.unit(0.1):
        assert watchdog.overdue_s == 0.0
        assert watchdog.overdue_s == pytest.approx(10.0)
    assert watchdog.overdue_s == 0.0


def test_a_decode_beside_a_step_that_never_ends_is_seen_as_well(demo, load, bench, spec):
    now = [0.0]
    on = bench(load(demo), decode_beside=True, clock=lambda: now[0])
    gate, began, decode = threading.Event(), threading.Event(), on.vae.decode
    on.vae.decode = lambda latents: began.set() or (gate.wait(20) and decode(latents))
    on.add(spec(steps=1))
    on.tick()
    assert began.wait(20) and on.engine.overdue_s == 0.0
    now[0] = 3600.0
    assert on.engine.overdue_s > 3000.0
    gate.set()
    run_to_end(on.engine)
    assert on.engine.overdue_s == 0.0
    on.engine.close()


def test_the_device_thread_says_when_it_is_not_well(demo, load):
    thread = DeviceThread(1)
    assert thread.problem == ""

    def engine():
        return StepEngine(load(demo), 1 << 20, JobEstimator(), lambda jobs, tokens: None, lambda job, event: None)

    thread.start(engine).result(20)
    assert thread.alive and thread.problem == ""
    thread.stop()
    thread.join(20)
    assert not thread.alive and thread.problem == "", "it was asked to end"
