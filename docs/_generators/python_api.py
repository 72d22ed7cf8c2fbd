"""Writes docs/reference/python.md from the public names of `zrelay_client`: `python docs/_generators/python_api.py`.

The page names the objects; mkdocstrings fills in signatures and docstrings when the site is built.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path

import zrelay_client
from zrelay_client import ZrelayError

PAGE = Path(__file__).parents[1] / "reference/python.md"
_START = """\
# The Python library

<!-- Written by docs/_generators/python_api.py from zrelay_client.__all__; do not edit. -->

`zrelay_client` exports the names on this page. [Use the Python library](../how-to/python.md) shows how to use them. The
website shows signatures and descriptions (`make docs`); in a checkout, read the docstrings.
"""


def _is_error(name: str) -> bool:
    kind = getattr(zrelay_client, name)
    return isinstance(kind, type) and issubclass(kind, ZrelayError)


_INFO = {"Device", "Feature", "Limits", "Queue", "ServiceStatus", "VisionEngine"}
_EVENTS = {"Accepted", "Done", "Event", "Image", "Notice", "Preview", "Progress", "Stage"}
_GROUPS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Clients", lambda name: name.endswith(("Client", "Jobs", "Settings", "Endpoint"))),
    ("Options", lambda name: name.endswith(("Options", "Keywords"))),
    ("Errors", _is_error),
    ("Information about services", lambda name: name.endswith("Info") or name in _INFO),
    ("Jobs and their events", lambda name: name.startswith("Job") or name in _EVENTS),
    ("Results and other values", lambda name: name != "__version__"),
)
"""Heading -> which names belong below it; the first group that takes a name has it."""


def page() -> str:
    """Returns the text of the page."""
    names = sorted(zrelay_client.__all__, key=lambda name: (not name.endswith("Client"), name))
    parts = [_START]
    for heading, belongs in _GROUPS:
        mine = [name for name in names if belongs(name)]
        names = [name for name in names if name not in mine]
        if mine:
            parts.append(f"\n## {heading}\n")
            parts += [f"\n::: zrelay_client.{name}\n" for name in mine]
    for module, exported in _modules():
        parts.append(f"\n## `{module}`\n")
        parts += [f"\n::: {module}.{name}\n" for name in exported]
    return "".join(parts)


def _modules() -> Iterator[tuple[str, list[str]]]:
    """Returns the public modules that export names of their own, such as `zrelay_client.testing`."""
    for found in pkgutil.iter_modules(zrelay_client.__path__, "zrelay_client."):
        if found.name.startswith("zrelay_client._") or found.name in ("zrelay_client.cli", "zrelay_client.stack"):
            continue
        exported = getattr(importlib.import_module(found.name), "__all__", [])
        names = [name for name in exported if name not in zrelay_client.__all__]
        if names:
            yield found.name, names


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
