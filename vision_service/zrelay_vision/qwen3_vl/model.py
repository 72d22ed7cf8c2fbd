"""Qwen3-VL's vision tower and its first language blocks, with a reusable prefix; and how they are loaded.

The language model is causal: text after an image does not influence the states of the image. So a sequence runs in two
parts. The prefix ends with the image, the suffix follows it and attends to the prefix's keys and values. A prefix can
be reused as long as the image and the text before it stay the same.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionModel,
    Qwen3VLVisionRotaryEmbedding,
)

from zrelay_shared.configuration import read_component
from zrelay_shared.errors import Cancelled, CheckpointError, InvalidArgument
from zrelay_shared.layers import LayerPlan, layer_plan
from zrelay_shared.pictures import plain_picture
from zrelay_shared.tokenizer import check_rows, load_tokenizer
from zrelay_shared.torch_weights import load_weights
from zrelay_shared.weight_files import WeightFiles, canonical_name
from zrelay_vision.processor_settings import check_settings
from zrelay_vision.qwen3_vl.folder import QwenFolder
from zrelay_vision.qwen3_vl.inputs import ImageTokens, QwenPreprocessor, format_vision_prompt

_FIXED_SETTINGS = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""Setting of the image processor -> the key of vision_config that determines it."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """The output of the vision tower for one image.

    Attributes:
        embeds: [N, width], the embeddings of the image's tokens.
        deepstack: One tensor [N, width] for each of the first blocks, added to the image's token states after that
            block.
    """

    embeds: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]


class KeyValueCache:
    """Keys and values of each block, [1, heads, tokens, dim].

    It has the only method of transformers' Cache that a block calls. Each run over it appends its own keys and values.
    """

    def __init__(self, keys: Sequence[torch.Tensor] = (), values: Sequence[torch.Tensor] = ()) -> None:
        self.keys, self.values = list(keys), list(values)

    @property
    def tokens(self) -> int:
        """Number of tokens in the cache."""
        return int(self.keys[0].shape[2]) if self.keys else 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def to(self, device: torch.device | str) -> "KeyValueCache":
        """Returns a copy on `device` that grows independently."""
        return KeyValueCache([key.to(device) for key in self.keys], [value.to(device) for value in self.values])

    def update(self, key: torch.Tensor, value: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values of `block`, and returns all of them."""
        if block == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        else:
            self.keys[block] = torch.cat([self.keys[block], key], 2)
            self.values[block] = torch.cat([self.values[block], value], 2)
        return self.keys[block], self.values[block]


class _LanguageModel(nn.Module):
    def __init__(self, config: Qwen3VLConfig, plan: LayerPlan) -> None:
        super().__init__()
        text: Any = config.text_config
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        self.layers = nn.ModuleList(Qwen3VLTextDecoderLayer(text, index) for index in range(plan.blocks))
        if plan.final_norm:
            self.norm = Qwen3VLTextRMSNorm(text.hidden_size, eps=text.rms_norm_eps)


class Qwen3VLModel(nn.Module):
    """The part of a Qwen3-VL that a layer plan needs, built of transformers' blocks with the checkpoint's names.

    The weights are on the meta device until they are loaded. Only the rotary tables are real from the start.

    Attributes:
        plan: The language blocks that are loaded.
        total_blocks: Number of language blocks of the whole checkpoint.
        width: Size of a token's states.
        merge: Patches along one side of an image token.
    """

    def __init__(self, config: Qwen3VLConfig, plan: LayerPlan) -> None:
        super().__init__()
        text: Any = config.text_config  # transformers has converted these to sub-configs
        vision: Any = config.vision_config
        text._attn_implementation = vision._attn_implementation = "sdpa"
        self.plan = plan
        self.total_blocks = int(text.num_hidden_layers)
        self.width = int(text.hidden_size)
        self.merge = int(vision.spatial_merge_size)
        with torch.device("meta"):
            self.visual = Qwen3VLVisionModel(vision)
            self.language_model = _LanguageModel(config, plan)
        self.visual.rotary_pos_emb = Qwen3VLVisionRotaryEmbedding(vision)
        self.rotary_emb = Qwen3VLTextRotaryEmbedding(text)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.language_model.embed_tokens.weight.device

    @torch.inference_mode()
    def encode_image(self, patches: torch.Tensor, grid: tuple[int, int]) -> ImageFeatures:
        """Runs the vision tower on the patches [rows * columns, values] of one image; `grid` is before merging."""
        grid_thw = torch.tensor([[1, *grid]], device=self.device)
        output = self.visual(patches.to(self.device, self.visual.patch_embed.proj.weight.dtype), grid_thw=grid_thw)
        return ImageFeatures(output.pooler_output, tuple(output.deepstack_features))

    @torch.inference_mode()
    def run_prefix(
        self,
        ids: Sequence[int],
        image_at: int,
        features: ImageFeatures,
        positions: torch.Tensor,
        plan: LayerPlan,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[torch.Tensor, KeyValueCache]:
        """Runs the language blocks up to the end of the image.

        Args:
            ids: Token ids, with image tokens in the place of the image.
            image_at: Index of the first image token.
            features: Features of the image.
            positions: Rotary positions [3, T].
            plan: Blocks to run, within the loaded ones.
            cancelled: Checked before each block.

        Returns:
            States [T, width], and the keys and values for a suffix.

        Raises:
            Cancelled: `cancelled` returned True.
        """
        embeds = self._embed(ids)
        image = slice(image_at, image_at + len(features.embeds))
        embeds[0, image] = features.embeds.to(embeds.dtype)
        cache = KeyValueCache()
        states = self._run(embeds, positions, None, cache, plan, cancelled, (image, features.deepstack))
        return states, cache

    @torch.inference_mode()
    def run_suffix(
        self,
        ids: Sequence[int],
        cache: KeyValueCache,
        positions: torch.Tensor,
        plan: LayerPlan,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> torch.Tensor:
        """Runs the language blocks on text after the prefix in `cache`, which grows. Returns states [T, width]."""
        seen = cache.tokens
        mask = torch.ones(len(ids), seen + len(ids), dtype=torch.bool, device=self.device).tril(seen)
        return self._run(self._embed(ids), positions, mask[None, None], cache, plan, cancelled, None)

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        embeds: torch.Tensor = self.language_model.embed_tokens(torch.tensor([list(ids)], device=self.device))
        return embeds

    def _run(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: KeyValueCache,
        plan: LayerPlan,
        cancelled: Callable[[], bool],
        image: tuple[slice, tuple[torch.Tensor, ...]] | None,
    ) -> torch.Tensor:
        if not plan.within(self.plan):
            raise ValueError(f"plan: expected one within {self.plan}, got {plan}")
        rotary = self.rotary_emb(states, positions[:, None].to(self.device))
        where, deepstack = image if image is not None else (slice(0), ())
        for at, block in enumerate(self.language_model.layers[: plan.blocks]):
            if cancelled():
                raise Cancelled("the caller cancelled the call")
            states = block(states, attention_mask=mask, position_embeddings=rotary, past_key_values=cache)
            # transformers records the hidden states of a block before it adds the image's features. So the features of
            # the last block are added only if the final norm follows.
            if at < len(deepstack) and (at + 1 < plan.blocks or plan.final_norm):
                states = states.clone()
                states[0, where] += deepstack[at].to(states.dtype)
        if plan.final_norm:
            states = self.language_model.norm(states)
        return states[0]


@dataclass(frozen=True, slots=True)
class QwenComponents:
    """What is needed besides the weights. It is small, and checked before the weights are read."""

    config: Qwen3VLConfig
    configuration_digest: str
    tokenizer: PreTrainedTokenizerBase
    tokens: ImageTokens
    preprocessor: QwenPreprocessor


def load_components(folder: QwenFolder, max_area: int) -> QwenComponents:
    """Loads config, tokenizer and image processor, formats one prompt, and cuts one image. Raises CheckpointError."""
    name = folder.component.path.name
    configuration = read_component(folder.component)
    try:
        config = Qwen3VLConfig(**configuration.arguments())
        tokens = ImageTokens(
            config.vision_start_token_id, config.image_token_id, config.video_token_id, config.vision_end_token_id
        )
    except Exception as error:  # transformers raises its own types, which change between versions
        raise _broken(name, "config.json does not describe a Qwen3-VL", error) from error
    tokenizer = load_tokenizer(folder.component.path, folder.chat_template)
    check_rows(folder.component.path, tokenizer, configuration.values["text_config"]["vocab_size"])
    file = f"{name}/{folder.processor_file}"
    vision: Any = configuration.values["vision_config"]
    fixed = {name: (key, vision[key]) for name, key in _FIXED_SETTINGS.items()}
    check_settings(file, folder.processor, Qwen2VLImageProcessorPil, fixed)
    try:
        preprocessor = QwenPreprocessor.of(folder.processor, max_area)
        preprocessor.settings  # noqa: B018  raises if a setting is missing
        preprocessor.patches(plain_picture(preprocessor.factor, preprocessor.factor), None)
    except Exception as error:  # a setting of the wrong type raises many types
        raise _broken(file, "it does not describe an image processor", error) from error
    try:
        format_vision_prompt(tokenizer, tokens, "a", "b")
    except InvalidArgument as error:
        raise _broken(name, "its chat template shows an image twice", error) from error
    except Exception as error:  # a template is a program and can raise anything
        raise _broken(name, "its chat template cannot show an image", error) from error
    return QwenComponents(config, configuration.digest, tokenizer, tokens, preprocessor)


def load_model(
    weights: WeightFiles, config: Qwen3VLConfig, hidden_layer: int, device: torch.device, dtype: torch.dtype
) -> Qwen3VLModel:
    """Loads the vision tower and the blocks that `hidden_layer` needs.

    Raises:
        CheckpointError: A tensor is missing, left over, not finite or has another shape, or config.json is invalid.
        ValueError: The model has no such layer.
    """
    text: Any = config.text_config
    plan = layer_plan(text.num_hidden_layers, hidden_layer)
    try:
        model = Qwen3VLModel(config, plan)
        with torch.device("meta"):
            complete = _LanguageModel(config, layer_plan(text.num_hidden_layers, -1))
    except Exception as error:  # no heads, a negative width: torch and Python raise many types
        raise _broken(weights.name, "config.json does not describe a Qwen3-VL", error) from error
    unused = complete.state_dict().keys() - model.language_model.state_dict().keys()
    names = frozenset(f"language_model.{name}" for name in unused)
    load_weights(model, weights, device, dtype, name_of=partial(_name_in_model, names))
    model.rotary_emb.to(device)
    model.visual.rotary_pos_emb.to(device)
    return model


def _name_in_model(unused: Collection[str], stored: str) -> str | None:
    """Returns the name of a tensor in the network; None for tensors of the whole model that the plan does not need."""
    name = canonical_name(stored)
    return None if name in unused else name


def _broken(name: str, problem: str, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    return CheckpointError(
        f"{name}: {problem} ({type(error).__name__}: {' '.join(lines[:2])}); copy it again from the checkpoint"
    )
