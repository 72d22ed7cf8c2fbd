"""The command line: `zrelay`. Commands are imported when they are run, so that `--help` needs click alone."""

from zrelay_client.cli._main import main
from zrelay_client.cli._root import cli

__all__ = ["cli", "main"]
