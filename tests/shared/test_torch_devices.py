"""Which device and dtype, and why."""

import re

import pytest
import torch

from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.torch_devices import dtype_name, pick_device, report, weights_do_not_fit

CPU = torch.device("cpu")


def test_the_requested_device_or_the_best_there_is() -> None:
    assert pick_device("cpu") == CPU
    absent = next(name for name, there in (("mps", torch.backends.mps.is_available()), ("cuda", False)) if not there)
    with pytest.raises(FailedPrecondition, match="this machine has"):
        pick_device(absent)


def test_dtypes_have_the_names_of_the_settings() -> None:
    assert dtype_name(torch.bfloat16) == "bfloat16"


def test_a_report_names_the_device_and_its_memory() -> None:
    found = report(CPU)
    assert found.kind == "cpu" and 0 <= found.memory_free_bytes <= found.memory_total_bytes


def test_what_torch_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"mem_get_info": (2, 24), "memory_reserved": 15, "memory_allocated": 6, "get_device_name": "a GPU"}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    found = report(torch.device("cuda"))
    assert (found.memory_free_bytes, found.memory_total_bytes) == (11, 24)


@pytest.mark.parametrize(
    ("device", "dtype", "remedies"),
    [
        ("cpu", torch.float32, "use --dtype bfloat16, which needs half, or end other programs .*, or use a machine"),
        ("cpu", torch.bfloat16, "end other programs that use its memory, or use a machine with more memory$"),
    ],
)
def test_weights_that_do_not_fit_name_only_remedies_that_help(device: str, dtype: torch.dtype, remedies: str) -> None:
    error = weights_do_not_fit("transformer/", torch.device(device), dtype)
    assert re.search(f"^transformer/ needs more memory in {dtype_name(dtype)} than cpu has: .*; {remedies}", str(error))
    assert ("bfloat16" in error.message.partition(";")[2]) == (dtype is torch.float32)
