"""P10: what a service holds beside its libraries, against the weights that it runs."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from measuring import Goal, Say
from servers import ServiceProcess
from vitals import vitals

from zrelay_shared.checkpoints import open_pipeline
from zrelay_shared.safetensors_header import read_header

_IMPORTS = """
import sys
__import__(sys.argv[1])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def after_imports(module: str) -> int:
    """Resident bytes of a process that has imported a service's modules and done nothing else."""
    command = [sys.executable, "-c", _IMPORTS, module]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(ran.stdout.split()[-1]) * 1024


def weight_bytes(model: Path, component: str, dtype: str, blocks: int | None = None) -> int:
    """Of a component in the dtype that it is computed in; of a text encoder the first `blocks` alone."""
    total = 0
    for file in open_pipeline(model).component(component).weights:
        for entry in read_header(file):
            number = entry.name.partition(".layers.")[2].partition(".")[0]
            if blocks is None or not number.isdigit() or int(number) < blocks:
                count = 1
                for side in entry.shape:
                    count *= side
                total += count * _BYTES[dtype]
    return total


_SERVICER = {"encoder": "zrelay_encoder.api.servicer", "generator": "zrelay_generator.service"}
"""The module whose import loads all that a service needs, by role."""


def memory(
    name: str, role: str, service: ServiceProcess, weights: int, loads: Mapping[str, Callable[[], object]], say: Say
) -> Goal:
    """Peaks after loading and after each of `loads`, which are run in order; the goal's value is of the first of them,
    the smallest. The others say what activations add."""
    base, peaks = after_imports(_SERVICER[role]), {"loaded": vitals(service.pid).peak_bytes}
    for what, work in loads.items():
        work()
        peaks[what] = vitals(service.pid).peak_bytes
    told = ", ".join(f"{what} {peak / 2**20:.0f} MiB" for what, peak in peaks.items())
    ratios = {what: (peak - base) / weights for what, peak in peaks.items()}
    say(
        f"P10 {role} {name}: after imports {base / 2**20:.0f} MiB, weights {weights / 2**20:.0f} MiB; peaks: {told}; "
        f"ratios {', '.join(f'{what} {ratio:.2f}' for what, ratio in ratios.items())}"
    )
    suffix = ("" if name == "mid" else f".{name}") + ("" if role == "generator" else f".{role}")
    what = f"{role}: (peak - after imports) / weights, {next(iter(loads))}, {name} checkpoint"
    return Goal(f"P10{suffix}", what, ratios[next(iter(loads))], 1.15)
