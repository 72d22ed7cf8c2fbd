"""Log lines and the errors of a start: texts of callers and files forge none, and do not control a terminal."""

import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.helpers.processes import ended
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.service import command, process
from zrelay_shared.service.roles import EncoderConfig

from .test_process import launch

pytestmark = pytest.mark.hostile

FORGED = "\n2026-01-01 00:00:00,000 I zrelay_encoder: forged\x1b[2J\u202e"
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [DIWE] ")
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def umask() -> Iterator[None]:
    """Restores the umask, which the start of a service sets."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def record(message: str, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("zrelay", logging.ERROR, __file__, 1, "a job failed: %s", (message,), info)


def test_an_event_is_one_line() -> None:
    written = process.LineFormatter(process.LOG_FORMAT).format(record(FORGED))
    assert len(written.splitlines()) == 1 and not CONTROLS.search(written)
    assert written.endswith(r"a job failed: \n2026-01-01 00:00:00,000 I zrelay_encoder: forged\x1b[2J\u202e")


def test_the_lines_of_a_traceback_look_like_no_event() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        written = process.LineFormatter(process.LOG_FORMAT).format(record("x", error))
    first, *rest = written.splitlines()
    assert LINE.match(first) and len(rest) > 3
    assert all(line.startswith("  ") for line in rest)
    assert "forged" in rest[-1] and not CONTROLS.search(written)


def test_a_service_process_logs_so() -> None:
    script = textwrap.dedent("""
        import logging, sys
        from zrelay_shared.service import process
        process.configure_logging("info")
        logging.getLogger("zrelay").info("prompt %s", sys.argv[1])
    """)
    _, log = ended(launch([sys.executable, "-c", script, FORGED]))
    assert len(log.splitlines()) == 1 and LINE.match(log) and "forged" in log and not CONTROLS.search(log)


def test_the_refusal_of_a_start_holds_no_controls(umask: None, capsys: pytest.CaptureFixture[str]) -> None:
    def load() -> EncoderConfig:
        raise InvalidArgument("the model names itself \x1b]0;owned\x07\u202e")

    def build(config: EncoderConfig) -> NoReturn:
        raise AssertionError("not reached")

    assert command.start(load, build) != 0
    assert capsys.readouterr().err == "error: the model names itself \\x1b]0;owned\\x07\\u202e\n"
