"""What a process may still take: free memory, control groups of both versions, RLIMIT_AS."""

import subprocess
import sys
from pathlib import Path

import pytest

from zrelay_shared.host_memory import HostMemory, cpu_has_bfloat16, host_memory

MIB = 1 << 20


def machine(root: Path, files: dict[str, str], total_mib: int = 4096, available_mib: int = 3000) -> Path:
    """Writes the files of a machine."""
    meminfo = f"MemTotal: {total_mib * 1024} kB\nMemFree: 10 kB\nMemAvailable: {available_mib * 1024} kB\n"
    for name, content in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_page_cache_is_free(tmp_path: Path) -> None:
    assert host_memory(machine(tmp_path, {})) == HostMemory(4096 * MIB, 3000 * MIB)


def test_a_platform_without_meminfo_reports_by_sysconf(tmp_path: Path) -> None:
    assert host_memory(tmp_path).total > 0


@pytest.mark.parametrize(
    ("used_mib", "cache_mib", "expected_mib"), [(100, 0, 924), (1000, 600, 624), (1024, 0, 0), (2000, 0, 0)]
)
def test_version_2(tmp_path: Path, used_mib: int, cache_mib: int, expected_mib: int) -> None:
    group = "sys/fs/cgroup/system.slice/zrelay.service"
    files = {
        "proc/self/cgroup": "0::/system.slice/zrelay.service\n",
        f"{group}/memory.max": f"{1024 * MIB}\n",
        f"{group}/memory.current": f"{used_mib * MIB}\n",
        f"{group}/memory.stat": f"anon 5\ninactive_file {cache_mib * MIB // 2}\nactive_file {cache_mib * MIB // 2}\n",
        "sys/fs/cgroup/system.slice/memory.max": "max\n",
        "sys/fs/cgroup/system.slice/memory.current": "1\n",
    }
    assert host_memory(machine(tmp_path, files)) == HostMemory(1024 * MIB, expected_mib * MIB, "control group")


def test_the_group_above_may_be_the_narrower_one(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": f"{2048 * MIB}\n",
        "sys/fs/cgroup/a/b/memory.current": "0\n",
        "sys/fs/cgroup/a/memory.high": f"{512 * MIB}\n",
        "sys/fs/cgroup/a/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.current": "0\n",
    }
    assert host_memory(machine(tmp_path, files)).free == 512 * MIB


def test_version_1_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
        f"{group}/memory.limit_in_bytes": f"{1500 * MIB}\n",
        f"{group}/memory.usage_in_bytes": f"{700 * MIB}\n",
        f"{group}/memory.stat": f"total_inactive_file {200 * MIB}\n",
    }
    assert host_memory(machine(tmp_path, files)) == HostMemory(1500 * MIB, 1000 * MIB, "control group")


def test_no_limit_of_version_1_is_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "700\n",
    }
    assert host_memory(machine(tmp_path, files)).limited_by == "free memory"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
def test_rlimit_of_a_real_process() -> None:
    script = "from zrelay_shared.host_memory import host_memory; m = host_memory(); print(m.free, m.limited_by)"
    command = f"ulimit -v {900 * 1024} && exec {sys.executable} -c '{script}'"
    free, _, limited_by = subprocess.check_output(["sh", "-c", command], text=True).strip().partition(" ")
    assert limited_by == "RLIMIT_AS" and 500 * MIB < int(free) < 900 * MIB


def test_bfloat16_units(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for line, expected in (
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("model name : bf16", False),
    ):
        cpuinfo.write_text(f"processor : 0\n{line}\n")
        assert cpu_has_bfloat16(cpuinfo) is expected, line
    assert not cpu_has_bfloat16(tmp_path / "absent")
