"""What the start of every service process does, before torch is loaded."""

import sys
from collections.abc import Callable
from pathlib import Path

from zrelay_shared import exits, logs, malloc
from zrelay_shared.errors import ZrelayError
from zrelay_shared.listening import parse_listen


def start(
    build: Callable[[], "object"],
    *,
    listen: str,
    insecure_listen: bool,
    log_level: str,
    grace_s: float,
    address_file: Path | None,
) -> int:
    """Builds a service (`serving.Service`) and serves it; the process's exit code, refusals told in one line."""
    malloc.keep_large_buffers()
    try:
        logs.configure(log_level)
        address = parse_listen(listen, insecure=insecure_listen)
        from zrelay_shared import serving  # grpc is not needed to say that a flag is wrong

        options = serving.ServeOptions(address, grace_s=grace_s, address_file=address_file)
        return serving.serve(build(), options)  # type: ignore[arg-type]
    except ZrelayError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return exits.code_of(error)
    except ModuleNotFoundError as error:
        if (error.name or "zrelay").startswith("zrelay"):
            raise
        print(f"error: {error.name} is not installed: pip install 'zrelay[all]'", file=sys.stderr)
        return exits.LOCAL_FILE
    except OSError as error:
        print(f"error: {error.filename or listen}: {error.strerror or error}", file=sys.stderr)
        return exits.LOCAL_FILE
