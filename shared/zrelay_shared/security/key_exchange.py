"""The exchange of a short code: SPAKE2 on Ed25519, with the certificate's fingerprint bound to it, and confirmation.

Both sides derive the same key only if they have the same code and see the same certificate. Neither side's messages
reveal anything about the code, so that an attacker can test one guess with each exchange that it takes part in.
"""

import hashlib
import hmac

from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

SHARE_BYTES = 33
_JOINER, _SERVER, _JOIN = b"zrelay pairing joiner", b"zrelay pairing server", b"zrelay pairing join"


class ShareInvalid(ValueError):
    """The other side's message is none of SPAKE2."""


class ExchangeKey:
    """The key of an exchange. It proves three things, each once.

    Attributes:
        joiner: What the joining machine shows to prove that it knows the code.
        server: What the server shows then.
        join: What the joining machine shows with its request.
    """

    __slots__ = ("join", "joiner", "server")

    def __init__(self, key: bytes) -> None:
        self.joiner, self.server, self.join = (
            hmac.digest(key, label, hashlib.sha256) for label in (_JOINER, _SERVER, _JOIN)
        )


class Exchange:
    """One side of an exchange.

    Attributes:
        share: The message for the other side.
    """

    def __init__(self, digits: str, fingerprint: bytes, *, joins: bool) -> None:
        """Begins an exchange.

        Args:
            digits: The short code.
            fingerprint: SHA-256 of the certificate that the server shows: its own, or what the joining machine sees.
            joins: Whether this side is the joining machine.
        """
        side = SPAKE2_A if joins else SPAKE2_B
        self._side = side(digits.encode(), idA=b"zrelay joiner", idB=b"zrelay server " + fingerprint)
        self.share: bytes = self._side.start()

    def finish(self, share: bytes) -> ExchangeKey:
        """Returns the key. An exchange is finished once.

        Args:
            share: The message of the other side.

        Raises:
            ShareInvalid: It is none.
        """
        try:
            if len(share) != SHARE_BYTES:
                raise ShareInvalid(f"expected {SHARE_BYTES} bytes, got {len(share)}")
            return ExchangeKey(self._side.finish(share))
        except (SPAKEError, NotOnCurve, ValueError) as error:
            raise ShareInvalid("expected a message of the exchange, got something else") from error
