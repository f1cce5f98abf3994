"""Generation with a key/value cache: what was computed for the characters before is kept.

In a causal model a character's keys and values depend on itself and on those before it, so they never
change: each is computed once, and a new character costs one row of each matrix product instead of T.

The window holds block_size characters. What happens when it is full depends on the position scheme.
With rope and alibi, which know distances only, it slides: the oldest character's keys and values are
dropped. (What they contributed to later characters stays in theirs, so that a model of several layers still
has hints of what lies before its window.) With learned and sinusoidal positions every character would get
a new position, and with it new keys and values: the window is filled again from its most recent half, so
that this is paid once every block_size / 2 characters.

`Decoder._fill` is the model's forward pass for T characters, `Decoder._append` the same for one, without what
T = 1 makes trivial.

Shapes as in gpt.py: B texts, T characters, C channels, H heads, D channels per head, V in the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.errors import InputError
from minilm.generation.config import Sampling
from minilm.generation.sampling import gumbel_noise, limit
from minilm.model.config import ModelConfig
from minilm.model.gpt import MiniGPT, TransformerBlock
from minilm.model.local_context import token_shift
from minilm.model.positions import alibi_bias, alibi_slopes, rope_rotation, rotate

# More at once are not faster: their keys and values no longer fit into a processor's cache.
_TEXTS_AT_ONCE = 32
_DRAWN_AT_ONCE = 8
# Fewer multiplications than this are faster on one core than divided among several.
_WORK_PER_THREAD = 1_500_000


def generate_ids(model: MiniGPT, ids: Tensor, sampling: Sampling) -> Iterator[int]:
    """Yield the ids that follow `ids`, (T,), as they are drawn, a few at a time."""
    draws = _draw(model, ids, sampling, [sampling.seed])
    while True:
        # To enter this mode takes as long as some operations of a step, and it must end before each yield.
        with torch.inference_mode():
            drawn = [int(each) for each in islice(draws, _DRAWN_AT_ONCE)]
        if not drawn:
            return
        yield from drawn


@torch.inference_mode()
def sample_ids(
    model: MiniGPT, ids: Tensor, sampling: Sampling, num_samples: int, stop_ids: Sequence[int] = ()
) -> list[npt.NDArray[np.int64]]:
    """What follows `ids`, (T,), in several texts, each up to where `stop_ids` begin in it.

    The first text is drawn with sampling.seed, the next with seed + 1.
    """
    texts: list[npt.NDArray[np.int64]] = []
    seeds = range(sampling.seed, sampling.seed + num_samples)
    for first in range(0, num_samples, _TEXTS_AT_ONCE):
        group = seeds[first : first + _TEXTS_AT_ONCE]
        columns: list[Tensor] = []  # (B,) per character
        ends = np.full(len(group), sampling.max_new_tokens)
        for drawn in _draw(model, ids, sampling, group):
            columns.append(drawn)
            if stop_ids and len(columns) >= len(stop_ids):
                latest = torch.stack(columns[-len(stop_ids) :], dim=1).cpu().numpy()
                stopped = (latest == stop_ids).all(1) & (ends == sampling.max_new_tokens)
                ends[stopped] = len(columns) - len(stop_ids)
                if (ends < sampling.max_new_tokens).all():
                    break
        rows = torch.stack(columns, dim=1).cpu().numpy() if columns else np.empty((len(group), 0), np.int64)
        texts += [row[:end] for row, end in zip(rows, ends, strict=True)]
    return texts


def useful_threads(model: MiniGPT, num_samples: int = 1) -> int:
    """How many of torch's threads make so many texts of this model faster."""
    work = model.num_parameters * min(num_samples, _TEXTS_AT_ONCE)
    return min(max(1, work // _WORK_PER_THREAD), torch.get_num_threads())


def _draw(model: MiniGPT, ids: Tensor, sampling: Sampling, seeds: Sequence[int]) -> Iterator[Tensor]:
    """Yield the next id of each text, (B,)."""
    device = model.token_embedding.weight.device
    noise = gumbel_noise(seeds, model.config.vocab_size, sampling.temperature, device)
    decoder = Decoder(model, len(seeds))
    logits = decoder.prefill(ids.to(device))
    if not logits.isfinite().all():
        raise InputError(
            "the model's logits are no numbers: its weights are damaged, or its training diverged"
        )
    for remaining in range(sampling.max_new_tokens, 0, -1):
        drawn = (limit(logits, sampling) + next(noise)).argmax(-1)
        yield drawn
        if remaining > 1:
            logits = decoder.step(drawn)


class Decoder:
    """Texts of equal length under way: `prefill`, then `step`, give logits for the next character.

    Made and used in torch.inference_mode().

    Args:
        model: in evaluation mode, in float32.
        batch_size: texts at once.
    """

    def __init__(self, model: MiniGPT, batch_size: int):
        self.model, self.config, self.batch_size = model, model.config, batch_size
        self.device = model.token_embedding.weight.device
        self.slides = self.config.position in ("rope", "alibi")
        # With room for two windows it slides by a copy to the front, once in block_size characters.
        self.capacity = 2 * self.config.block_size if self.slides else self.config.block_size
        shape = (2, batch_size * self.config.num_heads, self.capacity, self.config.head_dim)
        self.caches = [torch.empty(shape, device=self.device) for _ in model.blocks]
        self.views: list[list[_View] | None] = [None] * self.capacity  # for a character at each place
        self.scale = self.config.head_dim**-0.5
        self.length = 0  # characters in the cache
        self.dropped = 0  # characters that slid out of it
        self.recent: list[Tensor] = []  # ids, (B,) each, of what a window is filled again from
        self.latest = torch.empty(0)  # ids of the n-grams that the next character ends, (B, N - 1)
        self.rotation = self._rotation()
        self.bias = self._bias()
        self.token_table = _plain(model.token_embedding.weight)
        self.position_table = None
        if self.config.position == "learned":
            self.position_table = _plain(model.position_embedding.weight)
        elif self.config.position == "sinusoidal":
            self.position_table = model.position_table
        self.layers = [_Layer(block) for block in cast(Iterable[TransformerBlock], model.blocks)]
        self.shifts: list[_Shift] = []
        if self.config.shifted_channels:
            for layer in self.layers:
                layer.attention_norm = _Shift(layer.attention_norm, self.config, batch_size)
                layer.mlp_norm = _Shift(layer.mlp_norm, self.config, batch_size)
                self.shifts += [layer.attention_norm, layer.mlp_norm]
        self.final_norm = _norm(model.final_norm)
        self.unembed = partial(F.linear, weight=_plain(model.unembedding))

    def prefill(self, ids: Tensor) -> Tensor:
        """Start every text with the same characters, the latest block_size: (T,) -> logits (B, V)."""
        self.length = self.dropped = 0
        self.rotation = self._rotation()
        return self._fill(ids[-self.config.block_size :].expand(self.batch_size, -1))

    def step(self, ids: Tensor) -> Tensor:
        """Continue each text by one character: (B,) -> logits (B, V)."""
        if self.length == self.capacity:
            if not self.slides:
                kept = max(1, self.capacity // 2)
                return self._fill(torch.stack([*self.recent, ids][-kept:], dim=1))
            self._slide()
        return self._append(ids)

    def _fill(self, ids: Tensor) -> Tensor:
        """Put characters into the cache in the place of what is there: (B, T) -> logits (B, V)."""
        batch, self.length = ids.shape
        self.recent = list(ids.unbind(1))
        window = slice(0, self.length)
        for shift in self.shifts:
            shift.restart()
        x = self.token_table.index_select(0, ids.flatten())  # (B T, C)
        if self.position_table is not None:
            x += self.position_table[window].repeat(batch, 1)
        if self.config.ngram_embedding > 1:
            x += self.model.ngram_embedding(ids).flatten(0, 1)
            self.latest = F.pad(ids, (self.config.ngram_embedding, 0))[:, 1 - self.config.ngram_embedding :]
        for layer, view in zip(self.layers, self._views(window), strict=True):
            qkv = layer.qkv(layer.attention_norm(x)).view(batch, self.length, 3, self.config.num_heads, -1)
            qkv = self._positioned(qkv.permute(2, 0, 3, 1, 4), layer, window)  # (3, B, H, T, D)
            view.slot.copy_(qkv[1:])
            if layer is self.layers[-1] and not self.shifts:
                # Only the last character's output is wanted here, which takes the keys and values of all.
                x = x.view(batch, self.length, -1)[:, -1]
                gathered = _gather(qkv[0, :, :, -1].reshape(-1, 1, self.config.head_dim), view, self.scale)
            else:
                gathered = layer.attend(*qkv).transpose(1, 2)
            x += layer.projection(gathered.reshape(x.shape))
            x += layer.contraction(layer.activate(layer.expand(layer.mlp_norm(x))))
        x = x.view(batch, -1, self.config.embed_dim)[:, -1]
        return self.model.softcap(self.unembed(self.final_norm(x)))

    def _append(self, ids: Tensor) -> Tensor:
        """Put one more character into the cache: (B,) -> logits (B, V).

        Each operation is so small that what Python does between two of them takes as long.
        """
        config, place = self.config, self.length
        batch, heads, channels = self.batch_size, config.num_heads, config.head_dim
        if not self.slides:
            self.recent.append(ids)
        self.length = place + 1
        x = self.token_table.index_select(0, ids)  # (B, C)
        if self.position_table is not None:
            x += self.position_table[place]
        if config.ngram_embedding > 1:
            ending = torch.cat([self.latest, ids[:, None]], dim=1)  # (B, N)
            x += self.model.ngram_embedding.embed(ending[:, None])[:, 0]
            self.latest = ending[:, 1:]
        # Each takes time to make, and is of use whenever the window comes to this place.
        views = self.views[place] = self.views[place] or self._views(place)
        for layer, view in zip(self.layers, views, strict=True):
            qkv = layer.qkv(layer.attention_norm(x)).view(batch, 3, heads, channels).transpose(0, 1)
            qkv = self._positioned(qkv, layer, place)
            view.slot.copy_(qkv[1:])
            gathered = _gather(qkv[0].reshape(batch * heads, 1, channels), view, self.scale)
            x += layer.projection(gathered.view(batch, config.embed_dim))
            x += layer.contraction(layer.activate(layer.expand(layer.mlp_norm(x))))
        return self.model.softcap(self.unembed(self.final_norm(x)))

    def _positioned(self, qkv: Tensor, layer: "_Layer", places: int | slice) -> Tensor:
        """Queries, keys and values with what the configuration does to the first two: (3, B, H, ..., D)."""
        if self.config.qk_norm:
            qkv[0], qkv[1] = layer.query_norm(qkv[0]), layer.key_norm(qkv[1])
        if self.rotation:
            qkv[:2] = rotate(qkv[:2], self.rotation[0][places], self.rotation[1][places])
        return qkv

    def _views(self, places: int | slice) -> list["_View"]:
        """Of each layer's cache, when characters come to these places."""
        end = self.length
        window = slice(max(0, end - self.config.block_size), end)
        bias = self.bias[:, :, window.start - end :]
        return [
            _View(
                cache[:, :, places].unflatten(1, (self.batch_size, -1)),
                cache[0, :, window].transpose(1, 2),
                cache[1, :, window],
                bias,
            )
            for cache in self.caches
        ]

    def _slide(self) -> None:
        """Drop the oldest characters; those that stay make a full window with one more."""
        kept = self.config.block_size - 1
        first = self.length - kept
        for cache in self.caches:
            cache[:, :, :kept] = cache[:, :, first : self.length].clone()
        self.dropped, self.length = self.dropped + first, kept
        self.rotation = self._rotation()

    def _rotation(self) -> tuple[Tensor, Tensor] | None:
        """Rope's for each place in the cache, two (capacity, D/2), by positions in the whole text."""
        if self.config.position != "rope":
            return None
        # In double precision: a text may grow to positions whose angles float32 would round away.
        positions = torch.arange(self.dropped, self.dropped + self.capacity, dtype=torch.float64)
        cos, sin = rope_rotation(positions, self.config.head_dim)
        return cos.float().to(self.device), sin.float().to(self.device)

    def _bias(self) -> Tensor:
        """What is added to the scores of a full window: ALiBi's, (B H, 1, block_size), or zeros."""
        if self.config.position != "alibi":
            return torch.zeros(1, 1, self.config.block_size, device=self.device)
        positions = torch.arange(self.config.block_size, device=self.device)
        bias = alibi_bias(alibi_slopes(self.config.num_heads).to(self.device), positions[-1:], positions)
        return bias.repeat(self.batch_size, 1, 1)


def _gather(query: Tensor, view: "_View", scale: float) -> Tensor:
    """What a character takes from all of its window: (B H, 1, D) -> (B H, 1, D)."""
    scores = torch.baddbmm(view.bias, query, view.keys, alpha=scale)
    return torch.bmm(scores.softmax(-1), view.values)


class _View(NamedTuple):
    """Parts of a layer's cache, as the latest characters see them."""

    slot: Tensor  # where their own keys and values go, (2, B, H, D) or, of several, (2, B, H, T, D)
    keys: Tensor  # of the window of the last one, (B H, D, window)
    values: Tensor  # (B H, window, D)
    bias: Tensor  # what is added to its scores, (B H or 1, 1, window)


class _Shift:
    """`token_shift` after a normalization, of texts that come in pieces."""

    def __init__(self, norm: Callable[[Tensor], Tensor], config: ModelConfig, batch_size: int):
        self.norm, self.batch_size, self.channels = norm, batch_size, config.shifted_channels

    def restart(self) -> None:
        """The next piece is the beginning of the texts."""
        self.before: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The next T characters of each text: (B T, C) -> (B T, C)."""
        x = self.norm(x).view(self.batch_size, -1, x.shape[-1])
        shifted = token_shift(x, self.channels, self.before)
        self.before = x[:, -1:, : self.channels]
        return shifted.flatten(0, 1)


class _Layer:
    """A block's functions without its modules, whose bookkeeping takes as long as they do."""

    def __init__(self, block: TransformerBlock):
        attention, mlp = block.attention, block.mlp
        self.attention_norm, self.mlp_norm = _norm(block.attention_norm), _norm(block.mlp_norm)
        self.qkv, self.expand = _linear(attention.qkv), _linear(mlp.expand)
        self.projection, self.contraction = _linear(attention.projection), _linear(mlp.projection)
        self.attend, self.activate = attention.attend, mlp.activate
        if attention.config.qk_norm:
            self.query_norm, self.key_norm = _norm(attention.query_norm), _norm(attention.key_norm)


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    bias = None if module.bias is None else _plain(module.bias)
    return partial(F.linear, weight=_plain(module.weight), bias=bias)


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.LayerNorm):
        weight, bias = _plain(module.weight), None if module.bias is None else _plain(module.bias)
        return partial(torch.layer_norm, normalized_shape=module.normalized_shape, weight=weight, bias=bias)
    return module.forward


def _plain(parameter: Tensor) -> Tensor:
    """The same numbers, not a copy, as a tensor that autograd has never known and does not look after."""
    return torch.from_numpy(parameter.detach().numpy()) if parameter.is_cpu else parameter
