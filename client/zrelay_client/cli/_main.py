"""The process around a command: exit codes, and failures told in one line."""

import io
import os
import sys
from collections.abc import Sequence

import click

from zrelay_client.cli._root import cli
from zrelay_shared import exits


def main(args: Sequence[str] | None = None, command: click.Command = cli) -> int:
    """Runs `zrelay`, or another command as `zrelay` is run, and returns its exit code.

    Args:
        args: The arguments; those of the process if None.
        command: What is run.
    """
    given = list(sys.argv[1:] if args is None else args)
    if os.name == "nt":
        _write_utf8()
    try:
        code = command.main(given, prog_name="zrelay", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        why = str(error.__cause__ or error)  # click wraps Ctrl-C in an Abort of its own
        _say(f"interrupted: {why}" if why else "interrupted")
        return exits.INTERRUPTED
    except SystemExit as left:
        if left.code != 1:  # 1 is click's way out where whoever read our output has gone (`| head`); that is no failure
            raise
        return exits.OK
    except Exception as error:
        if "--debug" in given:
            import traceback

            traceback.print_exc()
        _say(f"error: {_told(error)}")
        return _code(error)
    return code if isinstance(code, int) else exits.OK


def _write_utf8() -> None:
    """Writes UTF-8 to pipes and files too, as on other platforms. Windows' code pages lack most prompts' characters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _told(error: Exception) -> str:
    from zrelay_shared.errors import ZrelayError  # not for `--help`

    if isinstance(error, ZrelayError):
        return error.message
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return f"a bug in zrelay: {type(error).__name__}: {error}; `zrelay --debug ...` shows where, please report it"


def _code(error: Exception) -> int:
    from zrelay_shared.errors import ZrelayError

    if isinstance(error, ZrelayError):
        return exits.code_of(error)
    return exits.LOCAL_FILE if isinstance(error, OSError) else exits.BUG


def _say(line: str) -> None:
    click.echo(line, err=True)
