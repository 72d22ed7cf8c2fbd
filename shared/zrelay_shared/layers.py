"""The blocks of a language model that must run for the hidden states of a layer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The part of the model that must run for one layer: the first `blocks` blocks, and whether the final norm runs."""

    blocks: int
    final_norm: bool

    def within(self, other: "LayerPlan") -> bool:
        """Returns whether a model that was loaded for `other` can run this plan."""
        return self.blocks <= other.blocks and (other.final_norm or not self.final_norm)


def layer_plan(total_blocks: int, hidden_layer: int) -> LayerPlan:
    """Returns the plan for an index of transformers' `hidden_states`.

    Args:
        total_blocks: Blocks of the whole model; `hidden_states` has one entry more.
        hidden_layer: -1 is the last block's output after the final norm, -2 the output of the second to last block
            without it, and so on.

    Raises:
        ValueError: `hidden_layer` is outside -total_blocks .. -1.
    """
    if not -total_blocks <= hidden_layer <= -1:
        raise ValueError(f"hidden_layer: expected {-total_blocks} to -1, got {hidden_layer}")
    return LayerPlan(total_blocks + 1 + hidden_layer, final_norm=hidden_layer == -1)
