"""The encoder that belongs to the checkpoint, which is completely known only when its weights have been hashed."""

from concurrent.futures import Future

from zrelay_shared.fingerprint import EncoderComparison, EncoderFingerprint, compare


class ExpectedEncoder:
    """The fingerprint of the encoder that belongs to the checkpoint. It is set once, possibly after the start.

    Everything that leaves the generator with the relation of an encoder waits for it.
    """

    def __init__(self, known: EncoderFingerprint | None = None) -> None:
        """Creates it with its fingerprint, or None if that is set later."""
        self._result: Future[EncoderFingerprint | None] = Future()
        if known is not None:
            self.set(known)

    @property
    def known(self) -> EncoderFingerprint | None:
        """The fingerprint, None until it is set."""
        return self._result.result() if self._result.done() else None

    def set(self, fingerprint: EncoderFingerprint) -> None:
        """Sets the fingerprint, unless `close` was called."""
        if not self._result.done():
            self._result.set_result(fingerprint)

    def close(self) -> None:
        """Wakes everyone who waits. If the fingerprint is not set yet, it stays unknown."""
        if not self._result.done():
            self._result.set_result(None)

    def wait(self) -> EncoderFingerprint | None:
        """Blocks the thread until the fingerprint is set. Returns None if the process ends before."""
        return self._result.result()


def compare_encoder(expected: EncoderFingerprint, actual: EncoderFingerprint | None) -> EncoderComparison:
    """Returns how the encoder of a job relates to the expected one; a job of this process alone may have none.

    Raises:
        EncoderMismatch: The encoder is refused.
    """
    return EncoderComparison("unverified") if actual is None else compare(expected, actual)
