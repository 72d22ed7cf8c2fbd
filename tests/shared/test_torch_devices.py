"""Which device and dtype, and why."""

import pytest
import torch

from zrelay_demo import CHECKPOINT
from zrelay_shared.checkpoints import open_pipeline
from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.torch_devices import dtype_name, pick_device, pick_dtype, report, stored_dtype

CPU = torch.device("cpu")


def test_the_device_asked_for_or_the_best_there_is():
    assert pick_device("cpu") == CPU
    absent = next(name for name, there in (("mps", torch.backends.mps.is_available()), ("cuda", False)) if not there)
    with pytest.raises(FailedPrecondition, match="this machine has"):
        pick_device(absent)


def test_the_dtype_asked_for_or_what_the_device_does_well():
    assert pick_dtype("float16", CPU, torch.bfloat16) == (torch.float16, "asked for")
    assert pick_dtype("auto", CPU, torch.float32)[0] is torch.float32
    assert pick_dtype("auto", CPU, torch.bfloat16)[0] in (torch.bfloat16, torch.float32)
    assert pick_dtype("auto", torch.device("mps"), torch.float32)[0] is torch.bfloat16


def test_the_dtype_that_a_checkpoint_is_stored_in():
    assert stored_dtype(open_pipeline(CHECKPOINT).component("transformer").weights) is torch.bfloat16
    assert dtype_name(torch.bfloat16) == "bfloat16"


def test_a_report_names_the_device_and_its_memory():
    found = report(CPU)
    assert found.kind == "cpu" and 0 <= found.memory_free_bytes <= found.memory_total_bytes
