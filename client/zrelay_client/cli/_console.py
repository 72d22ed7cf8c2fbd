"""What a person sees while a command works: one updating line on a terminal, nothing elsewhere."""

import shutil
import sys
import time

import click

from zrelay_client.embeds import PromptReport
from zrelay_client.events import Accepted, Event, Image, Progress

_LEAST_S = 0.05
_CLEAR = "\r\x1b[2K"


class Console:
    """Standard error. `quiet` says nothing but errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._shown = 0.0
        self._dirty = False

    def status(self, text: str, *, now: bool = True) -> None:
        """Shows `text` in the updating line; too soon after the last it is left out unless `now`."""
        if not self._live or (not now and time.monotonic() - self._shown < _LEAST_S):
            return
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be cleared
        click.echo(f"{_CLEAR}{text[:width]}", err=True, nl=False)
        self._shown, self._dirty = time.monotonic(), True

    def clear(self) -> None:
        """Removes the updating line."""
        if self._dirty:
            click.echo(_CLEAR, err=True, nl=False)
            self._dirty = False

    def out(self, text: str) -> None:
        """A line on standard output, clear of the updating one."""
        self.clear()
        click.echo(text)

    def line(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        if not self._quiet:
            click.echo(text, err=True)


def told(event: Event) -> str | None:
    """An event in a few words, None where it is not worth a line."""
    if isinstance(event, Accepted):
        waits = f", {event.queue_position} before" if event.queue_position else ""
        return f"accepted{waits}, seed {event.seed}"
    if isinstance(event, Progress):
        eta = f", {event.eta_s:.1f} s left" if event.eta_s > 0 else ""
        if event.state == "queued":
            return f"queued, {event.queue_position} before{eta}"
        return f"{event.stage.replace('_', ' ')} {event.completed}/{event.total}{eta}"
    if isinstance(event, Image):
        return f"image {event.image_index + 1} is here"
    return None


def told_report(name: str, report: PromptReport | None) -> str | None:
    """What a prompt lost on its way, None where it lost nothing. `name` is "prompt" or "negative prompt"."""
    if report is None or not report.dropped_tokens:
        return None
    return (
        f"the {name} has {report.formatted_tokens} tokens, {report.dropped_tokens} over the limit of "
        f"{report.text_limit}: {report.long_prompt_action}"
    )


def spoken_seconds(seconds: float) -> str:
    """`0.4 ms`, `12 ms` or `3.21 s`."""
    if seconds < 0.001:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
