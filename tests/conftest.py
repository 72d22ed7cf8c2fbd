"""Settings of every test: threads, hypothesis profiles, no configuration of the person who runs the tests, and Ctrl-C
for the processes that tests start."""

import os
import signal

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

# Before torch is imported. On models this small, several threads wait for each other many times longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Service processes read the variables and the configuration file themselves.
for name in [name for name in os.environ if name.startswith("ZRELAY_")]:
    del os.environ[name]
os.environ["ZRELAY_CONFIG"] = "/nonexistent/zrelay/config.toml"

# No deadlines: the machine may be busy. `make test-deep` chooses the second by --hypothesis-profile.
settings.register_profile("default", deadline=None, max_examples=20)
settings.register_profile("deep", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

# A shell that starts tests in the background (`nohup make test &`) has them ignore SIGINT, and their children inherit
# that. With Python's own handler here, children begin with the system's default, so that Ctrl-C reaches them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks property tests as deep where the deep profile was chosen, so that `-m deep` selects them too."""
    if config.getoption("--hypothesis-profile") != "deep":
        return
    for item in items:
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
            item.add_marker("deep")
