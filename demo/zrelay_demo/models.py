"""Creates the three tiny networks with random weights."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

Network = Any
"""A diffusers or transformers model. Any, because type checkers cannot follow the lazy imports of these libraries."""


@dataclass(frozen=True)
class Widths:
    """Sizes of the networks. Heads are 32 wide everywhere.

    Attributes:
        vae_channels: Channels of each level of the autoencoder.
        text_hidden: Hidden size of the text encoder.
        text_mlp: Width of the text encoder's MLP.
        text_layers: Layers of the text encoder.
        vocabulary: Rows of the token embedding.
        dim: Hidden size of the transformer.
        layers: Layers of the transformer.
    """

    vae_channels: tuple[int, ...] = (16, 32, 48, 64)
    text_hidden: int = 128
    text_mlp: int = 384
    text_layers: int = 4
    vocabulary: int = 768
    dim: int = 192
    layers: int = 6


def new_vae(widths: Widths) -> Network:
    """Returns an autoencoder: [N, 3, h, w] in -1..1 <-> [N, 16, h / 8, w / 8].

    Its scaling and shift factors are set after training.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths.vae_channels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def new_text_encoder(widths: Widths, tokenizer: Any) -> Network:
    """Returns a Qwen3 with 4 query heads, 2 key-value heads and tied embeddings."""
    config = Qwen3Config(
        vocab_size=widths.vocabulary,
        hidden_size=widths.text_hidden,
        intermediate_size=widths.text_mlp,
        num_hidden_layers=widths.text_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def new_transformer(widths: Widths) -> Network:
    """Returns a Z-Image transformer whose residual gates start at 0.3 and whose output starts at 0."""
    heads = widths.dim // 32
    transformer: Network = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=widths.dim,
        n_layers=widths.layers,
        n_refiner_layers=1,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=widths.text_hidden,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 128, 128],
        rope_theta=256.0,
        t_scale=1000.0,
    )
    with torch.no_grad():
        for block in [*transformer.layers, *transformer.noise_refiner]:
            modulation = block.adaLN_modulation[0]
            modulation.weight.zero_()
            modulation.bias.zero_()
            _, gate_attention, _, gate_mlp = modulation.bias.chunk(4)
            gate_attention.fill_(0.3)
            gate_mlp.fill_(0.3)
        last = transformer.all_final_layer["2-1"].linear
        last.weight.zero_()
        last.bias.zero_()
        transformer.x_pad_token.normal_(std=0.02)
        transformer.cap_pad_token.normal_(std=0.02)
    return transformer
