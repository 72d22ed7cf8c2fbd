"""Which blocks of a language model have to run for the hidden states of a layer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What has to run for one layer's hidden states: the first `blocks` blocks, and the final norm or not."""

    blocks: int
    final_norm: bool

    def within(self, other: "LayerPlan") -> bool:
        """Whether a model loaded for `other` can run this."""
        return self.blocks <= other.blocks and (other.final_norm or not self.final_norm)


def layer_plan(total_blocks: int, hidden_layer: int) -> LayerPlan:
    """The plan for index `hidden_layer` of transformers' `hidden_states` (total_blocks + 1 entries, last one normed).

    -1 is the last block's output after the final norm, -2 the output of the block before the last, and so on.
    Raises ValueError outside -total_blocks .. -1.
    """
    if not -total_blocks <= hidden_layer <= -1:
        raise ValueError(f"hidden_layer: expected {-total_blocks} to -1, got {hidden_layer}")
    return LayerPlan(total_blocks + 1 + hidden_layer, final_norm=hidden_layer == -1)
