"""Logging of a service process: one line an event, to stderr."""

import logging

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Logs at `level` (debug, info, warning, error) and above."""
    logging.basicConfig(level=level.upper(), format=FORMAT)
    for noisy in ("asyncio", "urllib3", "filelock", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
