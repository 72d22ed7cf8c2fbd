"""The device of a machine as it is known without torch: nvidia-smi, what hides a GPU, and devices that are missing."""

import os
from pathlib import Path

import pytest
import torch

from tests.helpers.refusals import refused
from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.service import local_device

SMI = """#!/bin/sh
case "$*" in *--id=1*) echo "40000, 39000, 7.5" ;; *) echo "81559, 80000, 9.0" ;; esac
"""


@pytest.fixture
def with_gpu(tmp_path: Path) -> dict[str, str]:
    """An environment whose nvidia-smi lists two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a build of torch without CUDA")
def test_a_gpu_that_torch_cannot_use_does_not_count(with_gpu: dict[str, str]) -> None:
    assert local_device.local_device("auto", with_gpu).kind == "cpu"
    error = refused(lambda: local_device.local_device("cuda", with_gpu), FailedPrecondition, reason="DEVICE_MISSING")
    assert "choose another --device" in error.message


@pytest.mark.parametrize(
    ("visible", "kind", "mib"),
    [(None, "cuda", 80000), ("0", "cuda", 80000), ("1,0", "cuda", 39000), ("", "cpu", 0), ("-1", "cpu", 0)],
)
def test_the_first_visible_gpu_counts(
    visible: str | None, kind: str, mib: int, with_gpu: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built_for_cuda = tmp_path / "packages" / "torch"
    built_for_cuda.mkdir(parents=True)
    (built_for_cuda / "__init__.py").touch()
    (built_for_cuda / "version.py").write_text("cuda: str | None = '12.8'\n")
    monkeypatch.delitem(__import__("sys").modules, "torch")
    monkeypatch.syspath_prepend(built_for_cuda.parent)
    environment = with_gpu | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    found = local_device.local_device("auto", environment)
    assert found.kind == kind
    if kind == "cuda":
        assert found.free_bytes == mib << 20 and found.bfloat16 == (mib == 80000)


def test_no_device_is_invented() -> None:
    refused(lambda: local_device.local_device("cuda", {"PATH": ""}), FailedPrecondition, reason="DEVICE_MISSING")
    assert local_device.local_device("cpu", {"PATH": ""}).kind == "cpu"
