"""P4 and P5: a short job that arrives behind a long one, and a job that is cancelled, over the services."""

import asyncio
import contextlib
import statistics
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from measuring import Goal, Say

from zrelay_client import AsyncClient, Cancelled, Embeds, Event, Progress, Result

_BEGUN = 2
"""Steps of the long job before anything happens to it."""


@dataclass
class Followed:
    """What a job told: when its first unit on the device began (perf_counter's seconds), its steps' milliseconds."""

    steps_ms: list[float] = field(default_factory=list)
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    on_device_at: float = 0.0
    completed: int = 0

    def __call__(self, event: Event) -> None:
        self.accepted.set()
        if not isinstance(event, Progress) or event.state == "queued":
            return
        if not self.on_device_at:
            self.on_device_at = time.perf_counter() - event.unit_ms / 1e3
            self.taken.set()
        if event.stage == "denoise" and event.completed > self.completed:  # else a heart-beat: it stands aside
            self.completed = event.completed
            self.steps_ms.append(event.unit_ms)
            if len(self.steps_ms) >= _BEGUN:
                self.begun.set()


def short_behind_long(
    name: str, endpoint: str, embeds: Embeds, long: dict[str, Any], short: dict[str, Any], rounds: int, say: Say
) -> list[Goal]:
    """P4: the short one's latency over its latency alone and one step of the long one; what the long one loses, over
    the short one's seconds on the device.

    What it loses is told by pairs of runs, one after the other: the time that is not its own steps (`_beside_s`), with
    the short one less without it. Its steps take ten seconds that vary by more than the whole of the short one's work.
    """
    return asyncio.run(_short_behind_long(name, endpoint, embeds, long, short, rounds, say))


async def _short_behind_long(
    name: str, endpoint: str, embeds: Embeds, long: dict[str, Any], short: dict[str, Any], rounds: int, say: Say
) -> list[Goal]:
    alone: list[float] = []
    behind: list[float] = []
    work: list[float] = []
    in_place: list[float] = []
    long_s: list[float] = []
    lost: list[float] = []
    steps_ms: list[float] = []
    async with AsyncClient(generator=endpoint) as client:
        await client.generate(embeds, seed=0, **short)  # warm
        for turn in range(rounds):
            took, result = await _timed(client.generate(embeds, seed=turn, **short))
            alone.append(took)
            work.append(_on_device_s(result))
            by_itself = Followed()
            took, _ = await _timed(client.generate(embeds, seed=turn, on_event=by_itself, **long))
            long_s.append(took)
            without_s = _beside_s(took, by_itself)
            steps_ms += by_itself.steps_ms
            step_s = statistics.median(steps_ms) / 1e3
            followed = Followed()
            painting = asyncio.create_task(_timed(client.generate(embeds, seed=turn, on_event=followed, **long)))
            await followed.begun.wait()
            await asyncio.sleep(step_s * _phase(turn, rounds))
            took, result = await _timed(client.generate(embeds, seed=turn, **short))
            behind.append(took)
            in_place.append(_on_device_s(result))
            lost.append(_beside_s((await painting)[0], followed) - without_s)
    short_s, step_s, work_s = statistics.median(alone), statistics.median(steps_ms) / 1e3, statistics.median(work)
    latency_s, lost_s = statistics.median(behind), statistics.median(lost)
    say(
        f"P4 {name}: short alone {short_s * 1e3:.0f} ms, behind a long one {latency_s * 1e3:.0f} ms (worst "
        f"{max(behind) * 1e3:.0f}); a step of the long one {step_s * 1e3:.0f} ms; the long one alone "
        f"{statistics.median(long_s) * 1e3:.0f} ms, loses {lost_s * 1e3:.0f} ms ({min(lost) * 1e3:.0f} to "
        f"{max(lost) * 1e3:.0f}) to the short one's work, {work_s * 1e3:.0f} ms alone and "
        f"{statistics.median(in_place) * 1e3:.0f} ms there"
    )
    suffix = "" if name == "mid" else f".{name}"
    return [
        Goal(
            f"P4{suffix}",
            f"short job behind a long one / alone + one step of the long one, {name} checkpoint",
            latency_s / (short_s + step_s),
            1.3,
        ),
        Goal(f"P4.loss{suffix}", "what the long one loses / the short one's work", lost_s / work_s, 1.0),
    ]


def cancelling(name: str, endpoint: str, embeds: Embeds, long: dict[str, Any], rounds: int, say: Say) -> Goal:
    """P5: from CancelJob to the moment at which the job that waits for the device has it, in steps of the cancelled
    one; the worst of all rounds, whose calls fall at even distances into a step."""
    freed, step_ms = asyncio.run(_cancelling(endpoint, embeds, {**long, "deterministic": True}, rounds))
    in_steps = [seconds * 1e3 / step_ms for seconds in freed]
    say(
        f"P5 {name}: a step takes {step_ms:.0f} ms; the device is free after {statistics.median(in_steps):.2f} steps, "
        f"at worst {max(in_steps):.2f}"
    )
    suffix = "" if name == "mid" else f".{name}"
    what = f"cancel to device free, worst of {rounds}, {name} checkpoint"
    return Goal(f"P5{suffix}", what, max(in_steps), 1.0, "steps")


async def _cancelling(endpoint: str, embeds: Embeds, long: dict[str, Any], rounds: int) -> tuple[list[float], float]:
    freed: list[float] = []
    steps_ms: list[float] = []
    async with AsyncClient(generator=endpoint) as client:
        for turn in range(rounds):
            first, second, name = Followed(), Followed(), uuid.uuid4().hex
            cancelled = asyncio.create_task(client.generate(embeds, request_id=name, on_event=first, **long))
            await first.begun.wait()
            # Deterministic jobs run alone, and of equals the one that has begun goes on: the second waits.
            waiting = asyncio.create_task(client.generate(embeds, on_event=second, **long))
            await second.accepted.wait()
            await asyncio.sleep(statistics.median(first.steps_ms) / 1e3 * _phase(turn, rounds))
            if second.on_device_at or cancelled.done():
                raise RuntimeError("expected one job on the device and one that waits: it has to be longer")
            asked = time.perf_counter()
            await client.cancel(name)
            await second.taken.wait()
            freed.append(max(0.0, second.on_device_at - asked))
            steps_ms += first.steps_ms
            waiting.cancel()
            with contextlib.suppress(Cancelled, asyncio.CancelledError):
                await waiting
            with contextlib.suppress(Cancelled):
                await cancelled
    return freed, statistics.median(steps_ms)


def _on_device_s(result: Result) -> float:
    timings = result.timings
    return timings.prepare_s + timings.denoise_s + timings.decode_s


def _beside_s(took_s: float, followed: Followed) -> float:
    """Seconds of a run that are not its steps', each taken as the median one: so a step that its company slowed counts
    as lost, and a machine that is slower in one run than in the next does not."""
    return took_s - len(followed.steps_ms) * statistics.median(followed.steps_ms) / 1e3


def _phase(turn: int, rounds: int) -> float:
    """Where in a step something happens: evenly spread over the rounds."""
    return (turn + 0.5) / rounds


async def _timed(work: Coroutine[Any, Any, Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    result = await work
    return time.perf_counter() - started, result
