"""Settings of every test: hypothesis without deadlines (the machine may be busy) and with few examples, and no
configuration of whoever runs the tests, which service processes would read."""

import os

from hypothesis import settings

for name in [name for name in os.environ if name.startswith("ZRELAY_")]:
    del os.environ[name]
os.environ["ZRELAY_CONFIG"] = "/nonexistent/zrelay/config.toml"

settings.register_profile("zrelay", deadline=None, max_examples=60)
settings.load_profile("zrelay")
