"""Which device and dtype, and why."""

from pathlib import Path

import pytest
import torch

from zrelay_demo import CHECKPOINT
from zrelay_shared import torch_devices
from zrelay_shared.checkpoints import open_pipeline
from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.torch_devices import dtype_name, pick_device, pick_dtype, report, stored_dtype

CPU = torch.device("cpu")


def test_the_requested_device_or_the_best_there_is() -> None:
    assert pick_device("cpu") == CPU
    absent = next(name for name, there in (("mps", torch.backends.mps.is_available()), ("cuda", False)) if not there)
    with pytest.raises(FailedPrecondition, match="this machine has"):
        pick_device(absent)


def test_the_requested_dtype_or_what_the_device_does_well() -> None:
    assert pick_dtype("float16", CPU, torch.bfloat16) == (torch.float16, "as requested")
    assert pick_dtype("auto", CPU, torch.float32)[0] is torch.float32
    assert pick_dtype("auto", CPU, torch.bfloat16)[0] in (torch.bfloat16, torch.float32)
    assert pick_dtype("auto", torch.device("mps"), torch.float32)[0] is torch.bfloat16


def test_the_dtype_that_a_checkpoint_is_stored_in() -> None:
    assert stored_dtype(open_pipeline(CHECKPOINT).component("transformer").weights) is torch.bfloat16
    assert dtype_name(torch.bfloat16) == "bfloat16"


def test_a_report_names_the_device_and_its_memory() -> None:
    found = report(CPU)
    assert found.kind == "cpu" and 0 <= found.memory_free_bytes <= found.memory_total_bytes


def test_memory_that_files_take_while_nobody_needs_it_is_free(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal:        1000 kB\nMemFree:           10 kB\nMemAvailable:     700 kB\nHugePages_Total:   0\n"
    )
    assert torch_devices.host_memory(meminfo) == (1_024_000, 716_800)
    meminfo.write_text("nothing that is known")
    assert torch_devices.host_memory(meminfo)[0] > 1_024_000, "sysconf is used instead"


def test_what_torch_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"mem_get_info": (2, 24), "memory_reserved": 15, "memory_allocated": 6, "get_device_name": "a GPU"}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    found = report(torch.device("cuda"))
    assert (found.memory_free_bytes, found.memory_total_bytes) == (11, 24)
