"""The text of an image's provenance."""

import json
from collections.abc import Mapping

from zrelay_shared import __version__

VERSION = 1
"""Version of the JSON's form."""


def provenance_text(content: Mapping[str, object]) -> str:
    """Returns JSON in ASCII with sorted keys, with the versions of its form and of zrelay added.

    Equal contents have equal texts.
    """
    versions = {"version": VERSION, "zrelay": __version__}
    return json.dumps({**versions, **content}, sort_keys=True, ensure_ascii=True)
