"""Settings of every test: hypothesis without deadlines (the machine may be busy) and with few examples."""

from hypothesis import settings

settings.register_profile("zrelay", deadline=None, max_examples=60)
settings.load_profile("zrelay")
