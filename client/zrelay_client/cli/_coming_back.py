"""How to come back to a job that was left to its generator, in words that can be pasted."""

from zrelay_client.events import Job
from zrelay_client.settings import Settings


def command_for(job: Job, settings: Settings, verb: str = "watch") -> str:
    """`zrelay jobs watch ID`, with the flags that find its generator again where they were given as flags."""
    words = ["zrelay jobs", verb, job.job_id]
    if settings.config.origins.get("profile") == "flag" and settings.config.profile is not None:
        words.append(f"--profile {settings.config.profile}")
    if settings.origin("generator") in ("", "flag"):
        words.append(f"--generator {job.endpoint}")
    return " ".join(words)
