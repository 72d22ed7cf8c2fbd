"""`zrelay up` divides the memory of the machine among its services before it starts any."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.refusals import refused
from zrelay_client.stack import memory
from zrelay_client.stack.launch import StackOptions
from zrelay_demo import CHECKPOINT
from zrelay_shared.errors import OutOfMemory
from zrelay_shared.service.memory_plan import PlannedDevice, needs_of, plan

GIB = 1 << 30


@pytest.fixture
def options(tmp_path: Path) -> StackOptions:
    return StackOptions(CHECKPOINT, tmp_path, tmp_path, ("encoder", "vision", "generator"), device="cpu")


def device(gib: float) -> PlannedDevice:
    return PlannedDevice("cpu", False, int(gib * GIB), int(gib * GIB))


def test_all_services_together_get_what_is_free(options: StackOptions) -> None:
    free = device(8)
    found = memory.budgets(options, free)
    assert set(found) == {"encoder", "vision", "generator"}
    assert sum(found.values()) == free.usable_bytes
    assert found["generator"] > found["encoder"], "what remains is the generator's"


def test_a_budget_in_mib_is_enough_for_the_planned_dtype(options: StackOptions) -> None:
    free = device(8)
    for role, budget in memory.budgets(options, free).items():
        whole = replace(memory.settings_of(role, options), memory_budget_bytes=(budget >> 20) << 20)
        assert plan(needs_of(whole), free).dtype == "float32", role


def test_the_stack_is_refused_before_it_starts(options: StackOptions) -> None:
    error = refused(lambda: memory.budgets(options, device(1)), OutOfMemory, reason="MEMORY_PLAN")
    for role in options.roles:
        assert role in error.message
    assert memory.budgets(replace(options, memory_plan=False), device(1)) == {}


def test_a_configured_budget_stays(options: StackOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRELAY_ENCODER_MEMORY_BUDGET_MIB", "2048")
    assert set(memory.budgets(options, device(8))) == {"vision", "generator"}


def test_a_platform_that_reports_nothing(options: StackOptions) -> None:
    assert memory.budgets(options, PlannedDevice("cpu", False, 0, 0)) == {}
