"""Bearer tokens as text: their form, and files that hold one."""

from pathlib import Path

from zrelay_shared.errors import invalid

TOKEN_PREFIX = "zrt_"
MAX_TOKEN_CHARACTERS = 128


def read_token(path: Path) -> str:
    """Returns a bearer token from a file, without spaces at its ends.

    Raises:
        InvalidArgument: TOKEN_INVALID, the file holds no token.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(4 * MAX_TOKEN_CHARACTERS)
    text = data.decode("ascii", "replace").strip()
    if not text.startswith(TOKEN_PREFIX) or len(text) > MAX_TOKEN_CHARACTERS or not text.isprintable():
        raise invalid(
            "token", f"a file with one token that begins with {TOKEN_PREFIX}", f"{path}", reason="TOKEN_INVALID"
        )
    return text
