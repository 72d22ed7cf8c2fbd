"""The flags of `zrelay generate` that are about reference images."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import click

from zrelay_client.cli._flags import PLACE, grouped

if TYPE_CHECKING:
    from zrelay_client.options import ConditionOptions, GenerateOptions

_BLENDS = (
    "interpolate",
    "linear",
    "adain",
    "adain-per-dim",
    "graduated",
    "slerp",
    "style-delta",
    "token-weights",
)
_NORMALIZATIONS = ("none", "token-rms", "global", "per-dim", "hybrid")
_TOKENS = ("full", "text-only", "image-only", "image-no-markers")


@dataclass(frozen=True, slots=True)
class ReferenceFlags:
    """What is painted after; None leaves it to the vision service."""

    reference: str | None
    alpha: float | None
    blend: str | None
    normalization: str | None
    outlier_mask: str | None
    outlier_threshold: float | None
    curve: str | None
    token_weights: str | None
    vision_layer: int | None
    vision_tokens: str | None
    vision_text: str | None
    vision_system_prompt: str | None
    omni: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.reference is not None or bool(self.omni)

    def added_to(self, options: "GenerateOptions") -> "GenerateOptions":
        """The options with the references. Raises click.UsageError for flags that do not go together."""
        if self.reference is not None and self.omni:
            raise click.UsageError("--reference blends into the prompt, --omni stands beside it: choose one")
        conditioning = self._conditioning()
        if self.reference is None and conditioning is not None:
            names = (item.name for item in fields(self) if item.name != "omni")
            flag = next(name for name in names if getattr(self, name) is not None)
            raise click.UsageError(f"--{flag.replace('_', '-')} is about a reference: give --reference IMAGE too")
        return replace(options, reference=self.reference, conditioning=conditioning, omni=self.omni)

    def _conditioning(self) -> "ConditionOptions | None":
        values: dict[str, Any] = {
            "alpha": self.alpha,
            "blend": _word(self.blend),
            "normalization": _word(self.normalization),
            "outlier_mask": self.outlier_mask,
            "outlier_threshold": self.outlier_threshold,
            "curve": _word(self.curve),
            "token_weights": _weights(self.token_weights),
            "hidden_layer": self.vision_layer,
            "tokens": _word(self.vision_tokens),
            "text": self.vision_text,
            "system_prompt": self.vision_system_prompt,
        }
        if all(value is None for value in values.values()):
            return None
        from zrelay_client.options import ConditionOptions

        return ConditionOptions(**values)


def _word(flag: str | None) -> str | None:
    return None if flag is None else flag.replace("-", "_")


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--token-weights: expected 0,0.5,1, got {text!r}") from None


reference_options = grouped(
    "reference",
    ReferenceFlags,
    click.option(
        "--reference",
        type=PLACE,
        metavar="IMAGE",
        help="Blend this image, or states that `zrelay vision encode` wrote, into the prompt (experimental).",
    ),
    click.option("--alpha", type=float, help="The reference's share, 0 to 1. Default: 0.3."),
    click.option("--blend", type=click.Choice(_BLENDS), help="Default: interpolate."),
    click.option("--normalization", type=click.Choice(_NORMALIZATIONS), help="Default: token-rms."),
    click.option("--outlier-mask", type=click.Choice(("none", "zero", "clamp", "scale")), help="Default: none."),
    click.option("--outlier-threshold", type=float, help="Ratio of deviations, for --outlier-mask. Default: 10."),
    click.option("--curve", type=click.Choice(("linear", "ease-in", "ease-out")), help="For --blend graduated."),
    click.option("--token-weights", metavar="LIST", help="One for each token, for --blend token-weights."),
    click.option("--vision-layer", type=int, metavar="N", help="Hidden layer of Qwen3-VL. Default: the server's."),
    click.option("--vision-tokens", type=click.Choice(_TOKENS), help="Which tokens count. Default: full."),
    click.option("--vision-text", metavar="TEXT", help="Text that Qwen3-VL reads after the image."),
    click.option("--vision-system-prompt", metavar="TEXT", help="A system turn before it."),
    click.option(
        "--omni",
        type=PLACE,
        metavar="IMAGE",
        multiple=True,
        help="Paint after this image, with a Z-Image Omni checkpoint; repeat it for up to 8.",
    ),
)
