"""Page tokens of ListJobs: which job a page begins after, readable by this process alone."""

import hashlib
import secrets

from zrelay_shared.errors import invalid

_NUMBER_BYTES = 8


class PageTokens:
    """Makes and reads page tokens.

    Arrival numbers count the jobs of all callers. A token hides its number: it is the number under a keystream, and the
    code that authenticates it, from which the keystream is made. Tokens end with the process.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def token(self, arrival: int, owner: str) -> str:
        """Returns the token for the jobs of an owner that arrived before a number."""
        number = arrival.to_bytes(_NUMBER_BYTES, "big")
        code = self._code(number, owner)
        return (code + self._hidden(number, code)).hex()

    def read(self, text: str, owner: str) -> int:
        """Returns the number of a token. Raises InvalidArgument if it was not made for this owner."""
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raw = b""
        code, hidden = raw[:-_NUMBER_BYTES], raw[-_NUMBER_BYTES:]
        number = self._hidden(hidden, code)
        if len(raw) != 2 * _NUMBER_BYTES or not secrets.compare_digest(code, self._code(number, owner)):
            raise invalid("page_token", "next_page_token of the previous reply", repr(text[:40]))
        return int.from_bytes(number, "big")

    def _code(self, number: bytes, owner: str) -> bytes:
        return hashlib.blake2b(number + owner.encode(), digest_size=8, key=self._key, person=b"code").digest()

    def _hidden(self, number: bytes, code: bytes) -> bytes:
        stream = hashlib.blake2b(code, digest_size=8, key=self._key, person=b"stream").digest()
        return bytes(one ^ other for one, other in zip(number, stream, strict=False))
