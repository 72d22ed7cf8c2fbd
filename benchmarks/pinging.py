"""P8: how long a service takes to answer a health check while its device is busy, against the same while it is idle."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from measuring import Goal, Say

_EVERY_S = 0.005
"""Between two pings. Back to back they would keep the processor awake and look faster."""
_WARM, _IDLE = 100, 400


def pings(endpoint: str, busy: Callable[[], object], say: Say, name: str = "P8") -> Goal:
    """The median while idle against the 99th percentile while `busy`, which gives the device work, runs in a thread."""
    with grpc.insecure_channel(endpoint) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack the methods

        def ping() -> float:
            time.sleep(_EVERY_S)
            started = time.perf_counter()
            health.Check(health_pb2.HealthCheckRequest())
            return time.perf_counter() - started

        idle = [ping() for _ in range(_WARM + _IDLE)][_WARM:]
        pinged: list[float] = []
        working = threading.Thread(target=busy)
        working.start()
        time.sleep(0.5)
        while working.is_alive() or not pinged:
            pinged.append(ping())
        working.join()
    worst = statistics.quantiles([*pinged, pinged[-1]], n=100)[98]
    median = statistics.median(idle)
    say(f"{name}: idle median {median * 1e3:.2f} ms, busy p99 {worst * 1e3:.2f} ms over {len(pinged)} pings")
    return Goal(name, "ping p99 while the device is busy / idle median", worst / median, 10.0)
