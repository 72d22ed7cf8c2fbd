"""What commands print: progress, lines, tables and JSON.

Standard output carries results; standard error carries progress and messages. On a terminal `rich` draws progress bars
and tables, and is imported only then. Elsewhere, and where TERM is dumb, everything is plain lines without progress.
NO_COLOR is respected.

Texts may come from servers and files. Every command prints through this module, which replaces what could control a
terminal by visible escapes (`texts.printable`).
"""

import contextlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import click

from zrelay_shared.texts import one_line, printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.progress import Progress as ProgressBars

    from zrelay_client.embeds import PromptReport
    from zrelay_client.events import Event

_REFRESH_HZ = 8.0
_UNINDENTED = re.compile(r"\n(?=\S)")


def echo(text: str = "", *, err: bool = False) -> None:
    """Prints text to standard output, or a message to standard error."""
    click.echo(_message_text(text) if err else printable(text), err=err)


class Console:
    """Prints progress and messages to standard error. `quiet` leaves only results and errors.

    A terminal that was closed is no error: its command goes on or ends by the signal for that, SIGHUP.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal: Terminal | None = None
        self._bars: ProgressBars | None = None

    def __enter__(self) -> "Console":
        if not self._quiet:
            self._terminal = _terminal(sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def status(self, text: str, *, completed: float = 0, total: float | None = None, note: str = "") -> None:
        """Shows the current activity on one line, in place of the previous text; does nothing without a terminal.

        Args:
            text: The activity.
            completed: Units of work that are done.
            total: Units of work, shown as a bar; without it an animation is shown.
            note: Text after the bar.
        """
        if self._terminal is None:
            return
        with contextlib.suppress(OSError):
            self._show(self._terminal, text, completed, total, note)

    def _show(self, terminal: "Terminal", text: str, completed: float, total: float | None, note: str) -> None:
        hidden = self._bars is None
        if self._bars is None:
            self._bars = _progress_bars(terminal)
        (task,) = self._bars.task_ids
        if total is None:
            self._bars.reset(task, start=False)  # an animation in place of a share
        else:
            self._bars.start_task(task)
        self._bars.update(task, description=one_line(text), completed=completed, total=total, note=one_line(note))
        if hidden:
            self._bars.start()

    def clear(self) -> None:
        """Removes the line of `status`."""
        if self._bars is not None:
            with contextlib.suppress(OSError):
                self._bars.stop()
            self._bars = None

    def result(self, text: str) -> None:
        """Prints a line to standard output."""
        self.clear()
        click.echo(one_line(text))

    def message(self, text: str, *, wrap: bool = False) -> None:
        """Prints text to standard error, unless quiet.

        Args:
            text: The text.
            wrap: Whether a terminal breaks long lines between words; not for commands, which are copied.
        """
        self.clear()
        if self._quiet:
            return
        with contextlib.suppress(OSError):
            if wrap and self._terminal is not None:
                from rich.text import Text

                self._terminal.print(Text(_message_text(text)))
            else:
                echo(text, err=True)


def show_event(console: Console, event: "Event") -> None:
    """Shows an event of a job: notices as lines, the rest as status."""
    from zrelay_client.events import Accepted, Image, Notice, Progress

    if isinstance(event, Notice):
        console.message(f"note: {event.message}")
    elif isinstance(event, Accepted):
        console.status(f"accepted, seed {event.seed}", note=_ahead(event.queue_position))
    elif isinstance(event, Progress):
        left = f"{event.eta_s:.1f} s left" if event.eta_s > 0 else ""
        if event.state == "queued":
            note = ", ".join(part for part in (_ahead(event.queue_position), left) if part)
            console.status("queued", note=note)
        else:
            count = f"{event.completed}/{event.total}"
            note = f"{count}, {left}" if left else count
            console.status(event.stage.replace("_", " "), completed=event.completed, total=event.total, note=note)
    elif isinstance(event, Image):
        console.status(f"received image {event.image_index + 1}")


def report_message(name: str, report: "PromptReport | None") -> str | None:
    """Returns a message about a prompt that was too long, None for one that fits. `name` names the prompt."""
    if report is None or not report.dropped_tokens:
        return None
    return (
        f"the {name} has {report.formatted_tokens} tokens, {report.dropped_tokens} over the limit of "
        f"{report.text_limit}: {report.long_prompt_action}"
    )


def counted(number: int, noun: str) -> str:
    """Returns `1 image` or `3 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def file_error_text(error: OSError) -> str:
    """Returns the file and the reason of an error."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def format_seconds(seconds: float) -> str:
    """Returns `0.4 ms`, `12 ms`, `3.21 s` or `12 min`."""
    if seconds < 0.001:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def format_bytes(size: float) -> str:
    """Returns `512 B`, `1.5 MiB` or `23.5 GiB`."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= length:
            return f"{size / length:.4g} {unit}"
    return f"{size:g} B"


def print_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object on one line of standard output."""
    import json

    click.echo(printable_json(json.dumps(value, ensure_ascii=False)))


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, wrap: Collection[str] = (), below: Collection[str] = ()
) -> None:
    """Prints rows under a header. Columns without any text are left out.

    Args:
        header: Names of the columns.
        rows: The cells of each row.
        wrap: Columns whose cells a terminal breaks into lines where the table is too wide.
        below: The last columns; a terminal that is too narrow for the table shows them on a line below each row.
    """
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    header, rows = [header[column] for column in kept], [[one_line(row[column]) for column in kept] for row in rows]
    terminal = _terminal(sys.stdout)
    if terminal is None:
        for line in aligned([header, *rows]):
            click.echo(line)
        return
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    width = max(map(len, aligned([header, *rows])))
    first = next((column for column, name in enumerate(header) if name in below), len(header))
    if width > terminal.width and first < len(header):
        top, *lines = aligned([row[:first] for row in (header, *rows)], gap=1)
        terminal.print(Text(top, style="bold"))
        for line, row in zip(lines, rows, strict=True):
            terminal.print(Text(line))
            if rest := "  ".join(cell for cell in row[first:] if cell):
                terminal.print(Padding(Text(rest), (0, 0, 0, 2)))
        return
    gap = 2 if width <= terminal.width else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(Text(name), overflow="fold", no_wrap=name not in wrap)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    terminal.print(table)


def print_fields(title: str, fields: Sequence[tuple[int, str, str]]) -> None:
    """Prints names and values below a title.

    Args:
        title: The first line; "" for none.
        fields: (indentation level, name, value) of each line.
    """
    title = one_line(title)
    fields = [(level, one_line(name), one_line(value)) for level, name, value in fields]
    terminal = _terminal(sys.stdout)
    if terminal is None:
        if title:
            click.echo(title)
        width = max((2 * level + len(name) for level, name, value in fields if value), default=0)
        for level, name, value in fields:
            click.echo(f"{'  ' * level + name:{width}}  {value}".rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    if title:
        terminal.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for level, name, value in fields:
        grid.add_row(Text("  " * level + name, style="" if value else "bold"), Text(value))
    terminal.print(grid)


def print_check(state: str, text: str, fix: str) -> None:
    """Prints one check of `zrelay doctor`, with the fix below it."""
    text, fix = one_line(text), one_line(fix)
    terminal = _terminal(sys.stdout)
    if terminal is None:
        click.echo(f"{state:4}  {text}")
        if fix:
            click.echo(f"      fix: {fix}")
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, width=4)
    grid.add_column(overflow="fold")
    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}.get(state, "")
    grid.add_row(Text(state, style=style), Text(text))
    if fix:
        grid.add_row("", Text(f"fix: {fix}"))
    terminal.print(grid)


def aligned(rows: Sequence[Sequence[str]], *, gap: int = 2) -> list[str]:
    """Returns rows as lines whose columns are aligned, `gap` spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        (" " * gap).join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _message_text(text: str) -> str:
    """Returns a message whose further lines are indented, so that none of them looks like another message."""
    return _UNINDENTED.sub("\n  ", printable(text))


def _ahead(jobs: int) -> str:
    return f"{jobs} ahead" if jobs else ""


def _terminal(stream: TextIO) -> "Terminal | None":
    """Returns rich's console for a stream, None where lines must be plain."""
    if not stream.isatty():
        return None
    from rich.console import Console as Terminal

    terminal = Terminal(file=stream, highlight=False, markup=False, emoji=False)
    return None if terminal.is_dumb_terminal else terminal


def _progress_bars(terminal: "Terminal") -> "ProgressBars":
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    bars = Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
        console=terminal,
        transient=True,
        refresh_per_second=_REFRESH_HZ,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bars.add_task("", start=False, total=None, note="")
    return bars
