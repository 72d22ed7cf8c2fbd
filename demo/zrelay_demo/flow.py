"""Parts shared by training and distillation: batches, tokenized captions, noisy latents, batched transformer."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, Qwen3ForCausalLM

from .attention import ProductAttention, real_rope
from .captions import canonical
from .latents_stage import EncodedScenes
from .models import Network
from .outlines import box
from .scenes import Scene, nominal, pixel_scale
from .wordings import caption

SHIFT = 3.0
"""Shift of the noise schedule, as in the checkpoint's scheduler."""
TOKEN_MULTIPLE = 32
"""Z-Image pads prompts and images to a multiple of this number of tokens, and its attention includes the pad tokens."""
SHORT_TOKENS, LONG_TOKENS = 32, 64
"""Padded lengths of prompts in tokens; every caption fits into the longer one."""
_MAX_DRAWS = 6
"""How many captions `draw_caption` tries."""
_PATCH_PIXELS = 16
"""Side of a patch in pixels: 2 latent pixels, each 8 x 8 pixels of the image."""
_WEIGHT_MARGIN = 4.0
"""Margin around an object's box, in pixels at the default resolution, within which patches count as the object's."""


@dataclass(frozen=True)
class NoisyBatch:
    """A batch of noisy latents for flow matching, float32.

    Attributes:
        x: Latents mixed with noise [N, patches, 64].
        velocity: Clean latents minus noise [N, patches, 64].
        sigma: Noise level from 0 to 1 [N].
    """

    x: Tensor
    velocity: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class TrainingSet:
    """The training data of one resolution.

    Attributes:
        rows: Rows of patches.
        columns: Columns of patches.
        scenes: The scenes.
        clean: Their latents as patches, float32 [scenes, patches, 64].
        weight: Weight of each patch in the loss, float32 [scenes, patches].
    """

    rows: int
    columns: int
    scenes: list[Scene]
    clean: Tensor
    weight: Tensor


def training_sets(encoded: list[EncodedScenes], object_weight: float) -> list[TrainingSet]:
    """Returns one training set per resolution.

    Args:
        encoded: Scenes and latents of each resolution.
        object_weight: Weight of patches that touch an object, relative to the background's.
    """
    return [
        TrainingSet(
            item.latents.shape[2] // 2,
            item.latents.shape[3] // 2,
            item.scenes,
            to_patches(item.latents),
            torch.stack([_weights(scene, object_weight) for scene in item.scenes]),
        )
        for item in encoded
    ]


@dataclass(frozen=True)
class TrainingBatch:
    """The data of one training step.

    Attributes:
        training_set: The training set from which the scenes are taken.
        tokens: Number of tokens that prompts are padded to.
        indices: Indices of the scenes in the training set.
    """

    training_set: TrainingSet
    tokens: int
    indices: list[int]


class BatchSampler:
    """Selects the scenes of each training step.

    The resolution of a step is random. Within a resolution, each epoch visits the scenes in a new random order, without
    repetition; scenes that do not fill a last batch are skipped.
    """

    def __init__(
        self, sets: list[TrainingSet], shares: tuple[float, ...], batch_size: int, long_prompt_share: float, seed: int
    ) -> None:
        """Creates a sampler.

        Args:
            sets: One training set per resolution.
            shares: Share of the steps for each training set.
            batch_size: Scenes per step of the first set. Other sets use as many as give the same number of tokens.
            long_prompt_share: Share of the first set's steps whose prompts have 64 tokens instead of 32.
            seed: Seed of all draws.
        """
        self._sets, self._shares, self._long, self._seed = sets, shares, long_prompt_share, seed
        batch_tokens = batch_size * (sets[0].clean.shape[1] + SHORT_TOKENS)
        self._batch_sizes = [
            min(len(training_set.scenes), max(1, round(batch_tokens / (training_set.clean.shape[1] + SHORT_TOKENS))))
            for training_set in sets
        ]
        self._rng = Random(f"course {seed}")
        self._plan: list[tuple[int, int, int]] = []
        self._drawn = [0] * len(sets)

    def batch_at(self, step: int) -> TrainingBatch:
        """Returns the batch of a step; it does not depend on which steps were requested before."""
        while len(self._plan) <= step:
            index = self._rng.choices(range(len(self._sets)), self._shares)[0]
            long = self._rng.random() < self._long and index == 0
            self._plan.append((index, self._drawn[index], LONG_TOKENS if long else SHORT_TOKENS))
            self._drawn[index] += 1
        index, nth, tokens = self._plan[step]
        training_set, batch_size = self._sets[index], self._batch_sizes[index]
        epoch, position = divmod(nth, len(training_set.scenes) // batch_size)
        order = torch.randperm(
            len(training_set.scenes), generator=torch.Generator().manual_seed(self._seed * 7919 + epoch)
        )
        return TrainingBatch(training_set, tokens, order[position * batch_size : (position + 1) * batch_size].tolist())


def _weights(scene: Scene, object_weight: float) -> Tensor:
    """Returns the weight of each patch in the loss, float32 [patches] with mean 1.

    The weights use the scene without its jitter: they depend only on the prompt, so that they do not bias the velocity.
    """
    weight = torch.ones(scene.height // _PATCH_PIXELS, scene.width // _PATCH_PIXELS)
    margin = _WEIGHT_MARGIN * pixel_scale(scene.resolution)
    for item in nominal(scene).objects:
        left, top, right, bottom = box(item.shape, item.cx, item.cy, item.r)
        rows = slice(max(0, int((top - margin) // _PATCH_PIXELS)), int((bottom + margin) // _PATCH_PIXELS) + 1)
        columns = slice(max(0, int((left - margin) // _PATCH_PIXELS)), int((right + margin) // _PATCH_PIXELS) + 1)
        weight[rows, columns] = object_weight
    return (weight / weight.mean()).flatten()


class CaptionTokenizer:
    """Draws captions and tokenizes them in Z-Image's chat template, padded to a fixed length."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # Counting with the backend takes a third of the time, and the tokenizer's calls leave padding enabled in it.
        self._counter = copy.deepcopy(self.tokenizer.backend_tokenizer)
        self._counter.no_padding()
        self._counter.no_truncation()

    def draw_caption(self, scene: Scene, rng: Random, tokens: int) -> str:
        """Returns a random caption of at most `tokens` tokens.

        For `tokens` = 64, a caption of more than 32 tokens is preferred if one is found within a few draws.
        """
        best = canonical(scene)
        for _ in range(_MAX_DRAWS):
            text = caption(scene, rng)
            length = len(self._counter.encode(_templated(text)).ids)
            if length <= tokens:
                best = text
                if tokens == SHORT_TOKENS or length > SHORT_TOKENS:
                    break
        return best

    def tokenize(self, texts: list[str], tokens: int) -> tuple[Tensor, Tensor]:
        """Returns ids, int64 [N, tokens], and the attention mask, bool [N, tokens]."""
        encoded = self.tokenizer(
            [_templated(text) for text in texts],
            padding="max_length",
            max_length=tokens,
            truncation=True,
            return_tensors="pt",
        )
        return encoded.input_ids, encoded.attention_mask.bool()


class PromptEncoder:
    """Turns prompts into the transformer's input with a trained text encoder, whose weights do not change."""

    def __init__(self, folder: Path) -> None:
        """Loads the tokenizer from `folder`/tokenizer and the model from `folder`/text_encoder."""
        self.caption_tokenizer = CaptionTokenizer(folder / "tokenizer")
        self._text_encoder = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder").eval().requires_grad_(False)
        self._text_encoder.set_attn_implementation("eager")

    @torch.no_grad()
    def encode(self, texts: list[str], tokens: int) -> tuple[Tensor, Tensor]:
        """Returns hidden_states[-2], float32 [N, tokens, hidden], and the attention mask, bool [N, tokens]."""
        ids, mask = self.caption_tokenizer.tokenize(texts, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            states, _ = hidden_states(self._text_encoder, ids, mask)
        return states.float(), mask


def hidden_states(text_encoder: Network, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns hidden_states[-2], which the transformer uses, and the last layer's output; each [N, tokens, hidden]."""
    out = text_encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return out.hidden_states[-2], out.last_hidden_state


def to_patches(latents: Tensor) -> Tensor:
    """Splits latents into patches in Z-Image's order: [N, 16, h, w] -> [N, h / 2 * w / 2, 64].

    Within a patch the order is row, column, channel.
    """
    n, channels, height, width = latents.shape
    split = latents.view(n, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 4 * channels)


def add_noise(clean: Tensor, generator: torch.Generator) -> NoisyBatch:
    """Mixes clean patches with noise.

    Noise levels are sigma = 3 u / (1 + 2 u), the scheduler's shift. u is stratified: one value from each of N equal
    intervals of [0, 1).
    """
    count = len(clean)
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    pure = torch.randn(clean.shape, generator=generator)
    level = sigma[:, None, None]
    return NoisyBatch((1 - level) * clean + level * pure, clean - pure, sigma)


class BatchedTransformer:
    """The transformer's forward for a batch of equal shapes; equal to diffusers' forward over lists up to rounding."""

    def __init__(self, transformer: Network, compiled: bool) -> None:
        """Prepares a transformer; if `compiled`, its blocks are compiled once per number of tokens."""
        self._transformer = transformer
        self._ropes: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        compiles = compiled and has_cpp_compiler()
        for block in [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]:
            block.attention.set_processor(ProductAttention())
            if compiles:
                block.compile(dynamic=False)

    def _rope(self, rows: int, columns: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Returns the rotary embeddings of the image's patches and of the prompt's tokens."""
        key = rows, columns, tokens
        if key not in self._ropes:
            embed = self._transformer.rope_embedder
            positions = torch.arange(1, tokens + 1)
            prompt_ids = torch.stack([positions, torch.zeros_like(positions), torch.zeros_like(positions)], -1)
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            image_ids = torch.stack([torch.full_like(y, tokens + 1), y, x], -1).flatten(0, 1)
            image_ids = F.pad(image_ids, (0, 0, 0, -len(image_ids) % TOKEN_MULTIPLE))
            self._ropes[key] = real_rope(embed(image_ids)), real_rope(embed(prompt_ids))
        return self._ropes[key]

    def __call__(self, training_set: TrainingSet, noisy: Tensor, sigma: Tensor, embeds: Tensor, mask: Tensor) -> Tensor:
        """Returns the velocity, float32 [N, patches, 64], from noise towards the clean patches.

        Args:
            training_set: Gives the rows and columns of patches.
            noisy: Patches [N, patches, 64].
            sigma: Noise level of each item [N].
            embeds: Prompt embeddings [N, tokens, hidden].
            mask: Which tokens belong to the prompt, bool [N, tokens].
        """
        net = self._transformer
        image_rope, prompt_rope = self._rope(training_set.rows, training_set.columns, embeds.shape[1])
        time = net.t_embedder((1 - sigma) * 1000.0)
        image = net.all_x_embedder["2-1"](noisy)
        pads = net.x_pad_token.to(image.dtype).expand(len(image), -image.shape[1] % TOKEN_MULTIPLE, -1)
        image = torch.cat([image, pads], 1)
        time = time.type_as(image)
        for block in net.noise_refiner:
            image = block(image, None, image_rope, time)
        prompt = net.cap_embedder(embeds)
        prompt = torch.where(mask[..., None], prompt, net.cap_pad_token.to(prompt.dtype))
        for block in net.context_refiner:
            prompt = block(prompt, None, prompt_rope)
        both = torch.cat([image, prompt.to(image.dtype)], 1)
        rope = torch.cat([image_rope, prompt_rope], 1)
        for block in net.layers:
            both = block(both, None, rope, time)
        velocity: Tensor = net.all_final_layer["2-1"](both, c=time)[:, : noisy.shape[1]]
        return velocity.float()


def has_cpp_compiler() -> bool:
    """Returns whether torch.compile can find a C++ compiler; prints a note if not."""
    torch._dynamo.config.recompile_limit = 64  # one compilation per number of tokens
    found = bool(shutil.which("g++") or shutil.which("clang++"))
    if not found:
        print("  no C++ compiler found: training continues without torch.compile, at about half the speed", flush=True)
    return found


def _templated(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
