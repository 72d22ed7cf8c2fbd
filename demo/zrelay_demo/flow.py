"""What training and distillation share: prompts as tokens, noisy latents, and a batched transformer forward."""

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
from .latents_stage import Encoded
from .models import Network
from .outlines import box
from .wordings import caption
from .world import Scene, nominal, unit

SHIFT = 3.0
MULTIPLE = 32
"""Z-Image pads prompts and pictures to a multiple of so many tokens, and its attention sees the pads."""
SHORT, LONG = 32, 64
"""Tokens of a prompt: every caption of this world fits into one or two multiples."""
_DRAWS = 6
_PATCH = 16
_NEAR = 4.0


@dataclass(frozen=True)
class Noisy:
    """A stratified batch on the straight paths from noise to latents, all float32 [N, patches, 64]."""

    x: Tensor
    velocity: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Lot:
    """What is trained on of one frame: scenes, patches [N, patches, 64] and the loss's weight of each patch."""

    rows: int
    columns: int
    scenes: list[Scene]
    clean: Tensor
    weight: Tensor


def lots(encoded: list[Encoded], object_weight: float) -> list[Lot]:
    """One lot for each frame; patches that an object's nominal box touches weigh `object_weight`."""
    return [
        Lot(
            some.latents.shape[2] // 2,
            some.latents.shape[3] // 2,
            some.scenes,
            patches(some.latents),
            torch.stack([_weights(scene, object_weight) for scene in some.scenes]),
        )
        for some in encoded
    ]


@dataclass(frozen=True)
class Turn:
    """What one step trains on: a lot, the tokens of its prompts, and the scenes, by index."""

    lot: Lot
    tokens: int
    chosen: list[int]


class Course:
    """Which frame each step sees and which of its scenes: every scene of a frame before any of them again."""

    def __init__(self, some: list[Lot], shares: tuple[float, ...], batch: int, long_prompts: float, seed: int) -> None:
        """`shares` are those of each lot among the steps; `batch` counts scenes of the first one, the others have as
        many as come to the same number of tokens. Of the first lot's steps `long_prompts` have 64 tokens, not 32."""
        self._lots, self._shares, self._long, self._seed = some, shares, long_prompts, seed
        whole = batch * (some[0].clean.shape[1] + SHORT)
        self._batches = [min(len(lot.scenes), max(1, round(whole / (lot.clean.shape[1] + SHORT)))) for lot in some]
        self._rng = Random(f"course {seed}")
        self._turns: list[tuple[int, int, int]] = []
        self._seen = [0] * len(some)

    def turn(self, step: int) -> Turn:
        """The same for the same step, whichever steps were asked for before."""
        while len(self._turns) <= step:
            index = self._rng.choices(range(len(self._lots)), self._shares)[0]
            long = self._rng.random() < self._long and index == 0
            self._turns.append((index, self._seen[index], LONG if long else SHORT))
            self._seen[index] += 1
        index, nth, tokens = self._turns[step]
        lot, batch = self._lots[index], self._batches[index]
        epoch, place = divmod(nth, len(lot.scenes) // batch)
        order = torch.randperm(len(lot.scenes), generator=torch.Generator().manual_seed(self._seed * 7919 + epoch))
        return Turn(lot, tokens, order[place * batch : (place + 1) * batch].tolist())


def _weights(scene: Scene, object_weight: float) -> Tensor:
    """Float32 [patches], mean 1. Only words decide, so that the velocity's expectation stays what it is."""
    weight = torch.ones(scene.height // _PATCH, scene.width // _PATCH)
    near = _NEAR * unit(scene.frame)
    for item in nominal(scene).objects:
        left, top, right, bottom = box(item.shape, item.cx, item.cy, item.r)
        rows = slice(max(0, int((top - near) // _PATCH)), int((bottom + near) // _PATCH) + 1)
        columns = slice(max(0, int((left - near) // _PATCH)), int((right + near) // _PATCH) + 1)
        weight[rows, columns] = object_weight
    return (weight / weight.mean()).flatten()


class Prompts:
    """Turns scenes into token ids, each caption in Z-Image's chat template and padded to 32 or 64."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # A call of the tokenizer costs three times as much, and leaves its padding behind.
        self._counter = copy.deepcopy(self.tokenizer.backend_tokenizer)
        self._counter.no_padding()
        self._counter.no_truncation()

    def words(self, scene: Scene, rng: Random, tokens: int) -> str:
        """A random caption of at most `tokens` tokens, and, where one is found soon, of more than half of them."""
        best = canonical(scene)
        for _ in range(_DRAWS):
            text = caption(scene, rng)
            length = len(self._counter.encode(_templated(text)).ids)
            if length <= tokens:
                best = text
                if tokens == SHORT or length > SHORT:
                    break
        return best

    def tokens(self, texts: list[str], tokens: int) -> tuple[Tensor, Tensor]:
        """Ids int64 [N, tokens] and mask bool [N, tokens]."""
        encoded = self.tokenizer(
            [_templated(text) for text in texts],
            padding="max_length",
            max_length=tokens,
            truncation=True,
            return_tensors="pt",
        )
        return encoded.input_ids, encoded.attention_mask.bool()


class Reader:
    """Prompts to what the transformer takes, by a text encoder that is trained already."""

    def __init__(self, words: Path) -> None:
        """`words` holds `tokenizer` and `text_encoder`."""
        self.prompts = Prompts(words / "tokenizer")
        self._text_encoder = Qwen3ForCausalLM.from_pretrained(words / "text_encoder").eval().requires_grad_(False)
        self._text_encoder.set_attn_implementation("eager")

    @torch.no_grad()
    def read(self, texts: list[str], tokens: int) -> tuple[Tensor, Tensor]:
        """hidden_states[-2] float32 [N, tokens, hidden] and their mask bool [N, tokens]."""
        ids, mask = self.prompts.tokens(texts, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            states, _ = hidden_states(self._text_encoder, ids, mask)
        return states.float(), mask


def hidden_states(text_encoder: Network, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the transformer takes, hidden_states[-2], and the last layer's output; each [N, tokens, hidden]."""
    out = text_encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return out.hidden_states[-2], out.last_hidden_state


def patches(latents: Tensor) -> Tensor:
    """[N, 16, h, w] -> [N, h / 2 * w / 2, 64] in the order of Z-Image's patches: row, column, then channels last."""
    n, channels, height, width = latents.shape
    split = latents.view(n, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 4 * channels)


def noise(clean: Tensor, generator: torch.Generator) -> Noisy:
    """Mix patches with noise at stratified noise levels sigma = 3 u / (1 + 2 u), the schedule's shift."""
    count = len(clean)
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    pure = torch.randn(clean.shape, generator=generator)
    level = sigma[:, None, None]
    return Noisy((1 - level) * clean + level * pure, clean - pure, sigma)


class Batched:
    """The transformer's forward over one batch of equal shapes; the same maths as diffusers' forward over lists."""

    def __init__(self, transformer: Network, fused: bool) -> None:
        """`fused` compiles the blocks with torch.compile, once for each number of tokens."""
        self._transformer = transformer
        self._ropes: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        compiles = fused and can_compile()
        for block in [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]:
            block.attention.set_processor(ProductAttention())
            if compiles:
                block.compile(dynamic=False)

    def _rope(self, rows: int, columns: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Of the image's patches and of the prompt."""
        key = rows, columns, tokens
        if key not in self._ropes:
            embed = self._transformer.rope_embedder
            spots = torch.arange(1, tokens + 1)
            prompt_ids = torch.stack([spots, torch.zeros_like(spots), torch.zeros_like(spots)], -1)
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            image_ids = torch.stack([torch.full_like(y, tokens + 1), y, x], -1).flatten(0, 1)
            image_ids = F.pad(image_ids, (0, 0, 0, -len(image_ids) % MULTIPLE))
            self._ropes[key] = real_rope(embed(image_ids)), real_rope(embed(prompt_ids))
        return self._ropes[key]

    def __call__(self, lot: Lot, noisy: Tensor, sigma: Tensor, embeds: Tensor, mask: Tensor) -> Tensor:
        """Velocity float32 [N, patches, 64] towards the clean patches."""
        net = self._transformer
        image_rope, prompt_rope = self._rope(lot.rows, lot.columns, embeds.shape[1])
        time = net.t_embedder((1 - sigma) * 1000.0)
        image = net.all_x_embedder["2-1"](noisy)
        pads = net.x_pad_token.to(image.dtype).expand(len(image), -image.shape[1] % MULTIPLE, -1)
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


def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler; says so when it does not."""
    torch._dynamo.config.recompile_limit = 64  # one for each number of tokens
    found = bool(shutil.which("g++") or shutil.which("clang++"))
    if not found:
        print("  no C++ compiler found: training goes on uncompiled, about half as fast", flush=True)
    return found


def _templated(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
