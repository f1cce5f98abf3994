"""Writing text: predict the next character, draw one, append it, again.

`generate_ids` and `sample_ids` know ids only; `generate`, `stream` and `generate_samples` are a layer of text
above them. A text depends on its own seed and on nothing beside it, so it is the same whether it is streamed,
alone, or one of many (but for the rounding of products of differently many rows).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minilm.decoding import Decoder
from minilm.errors import InputError
from minilm.model import MiniGPT
from minilm.tokenizer import UNKNOWN_ID, CharTokenizer

# More at once are not faster: their keys and values no longer fit into a processor's cache.
_TEXTS_AT_ONCE = 32
# Fewer multiplications than this cost less than telling another core about them.
_WORK_FOR_A_THREAD = 1_500_000


@dataclass(frozen=True)
class Sampling:
    """How a character is drawn from its distribution.

    Attributes:
        temperature: divides the logits: below 1 safer, above 1 wilder, 0 always the likeliest character.
        top_k: choose among the k likeliest characters; 0, or more than there are, means all.
        top_p: choose among the likeliest characters that together have this probability
            ("The Curious Case of Neural Text Degeneration", Holtzman et al., 2020); 1 means all.
        min_p: leave out characters less likely than this share of the likeliest one's probability
            ("Turning Up the Heat: Min-p Sampling", Nguyen et al., 2025); 0 means none.

    Raises:
        InputError: a number is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        fits = 0 <= self.temperature < np.inf and self.top_k >= 0 and 0 < self.top_p <= 1
        if not (fits and 0 <= self.min_p <= 1):
            raise InputError(
                "temperature and top_k must be at least 0, top_p above 0 to 1 and min_p from 0 to 1, "
                f"not {self.temperature}, {self.top_k}, {self.top_p} and {self.min_p}"
            )

    def limit(self, logits: Tensor) -> Tensor:
        """Minus infinity for what must not be drawn, by one limit after the other: (B, V) -> (B, V)."""
        if not (0 < self.top_k < logits.shape[-1] or self.top_p < 1 or self.min_p):
            return logits
        logits[:, UNKNOWN_ID] = -torch.inf
        ranked, order = logits.sort(descending=True, stable=True)
        if self.top_k:
            ranked[:, self.top_k :] = -torch.inf
        chances = torch.softmax(ranked / max(self.temperature, 1e-30), dim=-1)
        # A character stays if those before it have not reached top_p yet, so the likeliest always does.
        ranked[chances.cumsum(-1) - chances >= self.top_p] = -torch.inf
        ranked[chances < self.min_p * chances[:, :1]] = -torch.inf
        return torch.empty_like(logits).scatter(-1, order, ranked)


def generate(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    min_p: float = 0.0,
    stop: str = "",
) -> str:
    """The prompt and what the model writes after it; the arguments are those of `stream`."""
    (text,) = generate_samples(
        model, tokenizer, prompt, 1, max_new_tokens, temperature, top_k, top_p, seed, min_p, stop
    )
    return text


def stream(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    min_p: float = 0.0,
    stop: str = "",
) -> Iterator[str]:
    """Yield the prompt, then each new character as soon as it is drawn.

    Args:
        model: in evaluation mode, in float32.
        tokenizer: the model's.
        prompt: at least one character, all of them known to the tokenizer.
        max_new_tokens: characters to write at most.
        temperature: see Sampling.
        top_k: see Sampling.
        top_p: see Sampling.
        min_p: see Sampling.
        seed: same model, arguments and seed, same text.
        stop: writing ends before this text; characters that may begin it are held back until that is clear.

    Raises:
        InputError: the prompt is empty or has unknown characters, or a number is out of its range.
    """
    ids = _encode(tokenizer, prompt)
    sampling = Sampling(temperature, top_k, top_p, min_p)
    new_ids = generate_ids(model, ids, max_new_tokens, sampling, seed)
    alphabet = tokenizer.decode(range(tokenizer.vocab_size))
    return _until(stop, prompt, (alphabet[new_id] for new_id in new_ids))


def generate_samples(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    num_samples: int,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    min_p: float = 0.0,
    stop: str = "",
) -> list[str]:
    """Several texts at once, each as `generate` writes it: the first with `seed`, the next with the next.

    The other arguments are those of `stream`.
    """
    if num_samples < 1:
        raise InputError(f"num_samples: {num_samples} is less than 1")
    ids, stop_ids = _encode(tokenizer, prompt), tokenizer.encode(stop).tolist()
    sampling = Sampling(temperature, top_k, top_p, min_p)
    seeds = range(seed, seed + num_samples)
    rows = sample_ids(model, ids, max_new_tokens, sampling, seeds, stop_ids)
    return [prompt + tokenizer.decode(row) for row in rows]


def generate_ids(
    model: MiniGPT, ids: Tensor, max_new_tokens: int, sampling: Sampling, seed: int
) -> Iterator[int]:
    """Yield the ids that follow `ids`, (T,), each as soon as it is drawn.

    Raises:
        InputError: there are no ids to continue, or max_new_tokens or a seed is negative.
    """
    _require_sense(ids, max_new_tokens, [seed])
    return _one_by_one(_draw(model, ids, max_new_tokens, sampling, [seed]), _threads_for(model, 1))


def sample_ids(
    model: MiniGPT,
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    stop_ids: Sequence[int] = (),
) -> list[npt.NDArray[np.int64]]:
    """What follows `ids`, (T,), in as many texts as there are seeds, each up to where `stop_ids` begin in it.

    Raises:
        InputError: as for `generate_ids`.
    """
    _require_sense(ids, max_new_tokens, seeds)
    texts: list[npt.NDArray[np.int64]] = []
    for first in range(0, len(seeds), _TEXTS_AT_ONCE):
        group = seeds[first : first + _TEXTS_AT_ONCE]
        columns: list[Tensor] = []  # (B,) a character
        ends = np.full(len(group), max_new_tokens)
        with _computing(_threads_for(model, len(group))):
            for drawn in _draw(model, ids, max_new_tokens, sampling, group):
                columns.append(drawn)
                if stop_ids and len(columns) >= len(stop_ids):
                    latest = torch.stack(columns[-len(stop_ids) :], dim=1).cpu().numpy()
                    stopped = (latest == stop_ids).all(1) & (ends == max_new_tokens)
                    ends[stopped] = len(columns) - len(stop_ids)
                    if (ends < max_new_tokens).all():
                        break
        rows = torch.stack(columns, dim=1).cpu().numpy() if columns else np.empty((len(group), 0), np.int64)
        texts += [row[:end] for row, end in zip(rows, ends, strict=True)]
    return texts


def name_characters(characters: list[str]) -> str:
    """Say which characters the model never saw, with their code points, ten at most."""
    named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:10])
    more = f" and {len(characters) - 10} more" if len(characters) > 10 else ""
    return f"the model never saw {named}{more}"


def _draw(
    model: MiniGPT, ids: Tensor, max_new_tokens: int, sampling: Sampling, seeds: Sequence[int]
) -> Iterator[Tensor]:
    device = model.token_embedding.weight.device
    noise = _noise(seeds, model.config.vocab_size, sampling.temperature, device)
    decoder = Decoder(model, len(seeds))
    logits = decoder.prefill(ids.to(device))
    for left in range(max_new_tokens, 0, -1):
        drawn = (sampling.limit(logits) + next(noise)).argmax(-1)
        yield drawn
        if left > 1:
            logits = decoder.step(drawn)


def _noise(
    seeds: Sequence[int], vocabulary: int, temperature: float, device: torch.device
) -> Iterator[Tensor]:
    """What makes the largest logit a draw from softmax(logits / temperature), (B, V) a time.

    Gumbel noise times the temperature: the Gumbel-max trick ("A* Sampling", Maddison et al., 2014). Each
    text has a generator of its own, so that it does not depend on those beside it.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]
    steps = max(1, 2**14 // vocabulary)  # made at once, which is quicker
    while True:
        exponential = [
            generator.standard_exponential((steps, vocabulary), np.float32) for generator in generators
        ]
        # A zero would be noise without end, drawn whatever the logit.
        noise = -temperature * torch.from_numpy(np.stack(exponential, axis=1)).clamp(min=1e-30).log()
        noise[..., UNKNOWN_ID] = -torch.inf  # never drawn: it stands for no text
        yield from noise.to(device)


def _threads_for(model: MiniGPT, texts: int) -> int:
    """As many threads as so many texts of this model are worth, at most those that torch would take."""
    return min(max(1, model.num_parameters * texts // _WORK_FOR_A_THREAD), torch.get_num_threads())


@contextmanager
def _computing(threads: int) -> Iterator[None]:
    """Without gradients and with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _one_by_one(drawn: Iterator[Tensor], threads: int) -> Iterator[int]:
    """The ids of one text; `_computing` only while the next is drawn, not while the caller has its turn."""
    while True:
        with _computing(threads):
            new = next(drawn, None)
        if new is None:
            return
        yield int(new)


def _require_sense(ids: Tensor, max_new_tokens: int, seeds: Sequence[int]) -> None:
    if not len(ids):
        raise InputError("prompt: it is empty; give at least one character to continue")
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens: {max_new_tokens} is less than 0")
    if min(seeds, default=0) < 0:
        raise InputError(f"seed: {min(seeds)} is less than 0")


def _encode(tokenizer: CharTokenizer, prompt: str) -> Tensor:
    """The prompt's ids, (T,)."""
    if unknown := tokenizer.unknown_characters(prompt):
        raise InputError(
            f"prompt: {name_characters(unknown)}; write it without, or train on a text that has them"
        )
    return torch.from_numpy(tokenizer.encode(prompt).astype("int64"))


def _until(stop: str, prompt: str, pieces: Iterable[str]) -> Iterator[str]:
    """The prompt, then the pieces, up to where `stop` begins in them."""
    yield prompt
    held = ""
    for piece in pieces:
        held += piece
        if stop and stop in held:
            yield held.partition(stop)[0]
            return
        # What may be the beginning of `stop` waits for the next piece.
        waiting = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if held.endswith(stop[:n])), 0)
        if ready := held[: len(held) - waiting]:
            yield ready
        held = held[len(held) - waiting :]
    if held:
        yield held
