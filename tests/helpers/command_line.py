"""Runs `zrelay` in the test's process: the same code as the command, without the start of an interpreter."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from zrelay_client.cli import cli, main


@dataclass(frozen=True)
class Completed:
    """The exit code of a command and what it wrote."""

    returncode: int
    stdout_bytes: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8; a picture as Latin-1, which keeps its bytes."""
        try:
            return self.stdout_bytes.decode()
        except UnicodeDecodeError:
            return self.stdout_bytes.decode("latin-1")


def run_zrelay(
    *args: str,
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    command: click.Command = cli,
) -> Completed:
    """Runs a command to its end.

    Args:
        args: The arguments after `zrelay`.
        stdin: What the command reads from standard input.
        cwd: Its working folder; the present one if None.
        env: Its whole environment; the present one if None.
        command: Another command than `zrelay`, run as `zrelay` is.
    """
    out, err = _Captured(), _Captured()
    with contextlib.ExitStack() as stack:
        if cwd is not None:
            stack.enter_context(contextlib.chdir(cwd))
        if env is not None:
            stack.enter_context(_environment(env))
        stack.enter_context(_stdin(stdin))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = main(list(args), command)
    return Completed(code, out.written(), err.written().decode())


class _Captured(io.TextIOWrapper):
    """A text stream into memory, with the `buffer` that pictures are written to."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, encoding="utf-8", newline="")

    def written(self) -> bytes:
        self.flush()
        return self._bytes.getvalue()


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _stdin(data: bytes) -> Iterator[None]:
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(data))
    try:
        yield
    finally:
        sys.stdin = before
