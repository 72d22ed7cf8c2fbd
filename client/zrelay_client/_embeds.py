"""Embeddings in the client's hands: bytes to carry, never tensors to look into."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zrelay_client._contents import Content, content_of
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.omni import image_count
from zrelay_shared.wire import Parcel

if TYPE_CHECKING:
    from zrelay_client._omni import OmniImages


@dataclass(frozen=True, slots=True)
class PromptReport:
    """What happened to a prompt on its way: tokens before and after, what was done to fit `text_limit`, "" for nothing.

    `text_limit_source` is "request", "checkpoint" or "default".
    """

    formatted_tokens: int
    token_count: int
    dropped_tokens: int
    long_prompt_action: str
    text_limit: int
    text_limit_source: str


class Embeds:
    """An encoded prompt, with its negative prompt where there is one, ready for `generate` or for a file.

    Opaque: it holds the messages as the encoder sent them. Made by `encode` or `load`, never by hand.
    """

    __slots__ = (
        "_contents",
        "_parcel",
        "encode_s",
        "fingerprint",
        "negative_report",
        "notes",
        "omni",
        "painted",
        "report",
    )

    def __init__(
        self,
        parcel: Parcel[Any],
        *,
        fingerprint: EncoderFingerprint,
        report: PromptReport,
        negative_report: PromptReport | None,
        encode_s: float = 0.0,
    ) -> None:
        self._parcel = parcel
        self._contents: dict[str, Content] | None = None
        self.fingerprint = fingerprint
        """What encoded the prompt."""
        self.report = report
        """What happened to the prompt."""
        self.negative_report = negative_report
        """What happened to the negative prompt, None where there is none."""
        self.encode_s = encode_s
        """Seconds the encoder's answer took, 0 for embeddings from a file."""
        self.notes: tuple[str, ...] = ()
        """What was to be told when they were encoded: that another encoder than the first made them, for one."""
        self.omni: OmniImages | None = None
        """The images that the prompt is painted after (Omni); a file does not hold them."""
        self.painted = False
        """Whether they went to a generator before: from the second time on they go by name."""

    @property
    def image_count(self) -> int:
        """Images that the prompt has places for (Omni), 0 for an ordinary one."""
        return image_count(len(self._parcel.message.prompt.prompt_embeds.segments))

    @property
    def prompt(self) -> str | None:
        """The prompt, None where the file does not tell it."""
        said = self._parcel.message.provenance
        return said.prompt if said.HasField("prompt") else None

    @property
    def negative_prompt(self) -> str | None:
        """The negative prompt, None where there is none or the file does not tell it."""
        said = self._parcel.message.provenance
        return said.negative_prompt if said.HasField("negative_prompt") else None

    @property
    def parcel(self) -> Parcel[Any]:
        """The beginning of a GenerationSpec, for the modules that speak the contract."""
        return self._parcel

    @property
    def contents(self) -> dict[str, Content]:
        """Field of a GenerationSpec -> what stands there, embeddings and Omni's images, as content to be sent once and
        then named."""
        if self._contents is None:
            spec, fields = self._parcel.message, ("prompt", "negative_prompt")
            there = [name for name in fields if spec.HasField(name)]
            self._contents = {name: content_of(self._parcel, getattr(spec, name).prompt_embeds) for name in there}
            self._contents |= self.omni.contents if self.omni is not None else {}
        return self._contents

    def beside(self, omni: "OmniImages") -> "Embeds":
        """The same prompt, to be painted after images."""
        other = Embeds(
            self._parcel,
            fingerprint=self.fingerprint,
            report=self.report,
            negative_report=self.negative_report,
            encode_s=self.encode_s,
        )
        other.omni = omni
        return other

    def save(self, path: Path | str, *, keep_prompt: bool = True) -> None:
        """Writes the hand-over file (safetensors), whole or not at all. Raises OSError.

        `keep_prompt` False leaves the texts out of it; the generator does not need them.
        """
        parcel = self._parcel
        if not keep_prompt:
            parcel = Parcel(type(parcel.message)(), parcel)
            parcel.message.CopyFrom(self._parcel.message)
            parcel.message.ClearField("provenance")
        from zrelay_shared import embeds_file  # its codecs are not needed to carry embeddings

        embeds_file.write(Path(path), parcel)

    @classmethod
    def load(cls, path: Path | str) -> "Embeds":
        """Reads a hand-over file. Raises OSError, InvalidArgument (EMBEDS_FILE_INVALID) and PayloadCorrupt."""
        from zrelay_client._replies import embeds_from_spec
        from zrelay_shared import embeds_file

        return embeds_from_spec(embeds_file.read(Path(path)))

    def __repr__(self) -> str:
        return f"Embeds({self.report.token_count} tokens, encoder {self.fingerprint.digest[:12]})"
