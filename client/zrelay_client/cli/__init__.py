"""The command line, `zrelay`. A command's module is imported when the command runs, so that `--help` needs click alone.

The modules import each other in this order: `_main`, the commands, `_prompts_file`, `_running`, `_image_jobs`, then
`_files`, `_options` and `_output`.
"""

from zrelay_client.cli._main import cli, main

__all__ = ["cli", "main"]
