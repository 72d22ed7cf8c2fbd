"""Logging of a service process: one line an event, to stderr."""

import logging

from zrelay_shared.errors import InvalidArgument

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Logs at `level` (debug, info, warning, error) and above. Raises InvalidArgument for another."""
    if level.lower() not in LEVELS:
        raise InvalidArgument(f"log-level: expected one of {', '.join(LEVELS)}, got {level!r}", field="log-level")
    logging.basicConfig(level=level.upper(), format=FORMAT)
    for noisy in ("asyncio", "urllib3", "filelock", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
