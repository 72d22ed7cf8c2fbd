"""How to come back to a job that was left to its generator, in words that can be pasted."""

from zrelay_client import _settings
from zrelay_client._jobs import Job
from zrelay_shared.config import Config


def command_for(job: Job, settings: Config, verb: str = "watch") -> str:
    """`zrelay jobs watch ID`, with the flags that find its generator again where they were given as flags."""
    words = ["zrelay jobs", verb, job.job_id]
    if settings.origins.get("profile") == "flag" and settings.profile is not None:
        words.append(f"--profile {settings.profile}")
    found = _settings.endpoints(settings).get("generator")
    if found is None or found.origin == "flag":
        words.append(f"--generator {job.endpoint}")
    return " ".join(words)
