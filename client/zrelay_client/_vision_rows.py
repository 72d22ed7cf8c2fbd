"""Tokens of embeddings as rows of floats, for calibration and analysis."""

from typing import Any

from zrelay_client._vision_numbers import Rows, floats
from zrelay_client.embeds import Embeds
from zrelay_client.image_embeds import ImageEmbeds
from zrelay_shared.tensors import check
from zrelay_shared.wire import Parcel


def prompt_rows(embeds: Embeds) -> list[Rows]:
    """Returns the tokens of a prompt, segment by segment. Raises as `tensors.check`."""
    segments = embeds.parcel.message.prompt.prompt_embeds.segments
    return [_rows(embeds.parcel, part.prompt_embeds, has_first=index == 0) for index, part in enumerate(segments)]


def states_rows(image: ImageEmbeds) -> list[Rows]:
    """Returns the tokens of an image's states. Only "full" and "text_only" states have the sequence's first token."""
    states = image.parcel.message.results[0].states
    return [_rows(image.parcel, states.hidden_states, has_first=image.tokens in ("full", "text_only"))]


def _rows(parcel: Parcel[Any], tensor: Any, *, has_first: bool) -> Rows:
    view = check(tensor, parcel.bytes_of(tensor), field="embeddings", rank=2)
    return Rows(floats(view.dtype, view.data), view.shape[1], has_first)
