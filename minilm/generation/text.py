"""Text from a trained model: what follows a prompt, whole, as a stream, or many texts at once.

A text depends on its own seed and on nothing beside it, so it is the same whether it is streamed, alone, or
one of many (up to rounding in matrix products with different numbers of rows).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from minilm.data.tokenizer import CharTokenizer, describe_unknown
from minilm.errors import InputError
from minilm.generation.config import Sampling
from minilm.generation.kv_cache import generate_ids, sample_ids
from minilm.model.gpt import MiniGPT


def generate(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = Sampling.max_new_tokens,
    temperature: float = Sampling.temperature,
    top_k: int = Sampling.top_k,
    top_p: float = Sampling.top_p,
    seed: int = Sampling.seed,
    min_p: float = Sampling.min_p,
    stop: str = Sampling.stop,
) -> str:
    """The prompt and what the model writes after it; the arguments are those of `stream`."""
    return generate_samples(
        model, tokenizer, prompt, 1, max_new_tokens, temperature, top_k, top_p, seed, min_p, stop
    )[0]


def stream(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = Sampling.max_new_tokens,
    temperature: float = Sampling.temperature,
    top_k: int = Sampling.top_k,
    top_p: float = Sampling.top_p,
    seed: int = Sampling.seed,
    min_p: float = Sampling.min_p,
    stop: str = Sampling.stop,
) -> Iterator[str]:
    """Yield the prompt, then one new character after the other; a few are drawn at a time.

    The model is in evaluation mode and in float32. What follows the prompt in the arguments are the fields of
    `minilm.generation.config.Sampling`. Characters that may begin `stop` are held back until that is decided.

    Raises:
        InputError: the prompt is empty or has unknown characters, a value is out of its range, or the model's
            logits are no numbers.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, max_new_tokens, stop, seed)
    prompt, stop = with_newlines(prompt), with_newlines(stop)
    ids = encode_prompt(tokenizer, prompt)
    alphabet = tokenizer.decode(range(tokenizer.vocab_size))
    characters = (alphabet[new_id] for new_id in generate_ids(model, ids, sampling))
    return _until(stop, prompt, characters)


def generate_samples(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    num_samples: int,
    max_new_tokens: int = Sampling.max_new_tokens,
    temperature: float = Sampling.temperature,
    top_k: int = Sampling.top_k,
    top_p: float = Sampling.top_p,
    seed: int = Sampling.seed,
    min_p: float = Sampling.min_p,
    stop: str = Sampling.stop,
) -> list[str]:
    """Several texts at once, each as `generate` writes it: the first with `seed`, the next with seed + 1.

    The other arguments are those of `stream`.
    """
    if num_samples < 1:
        raise InputError(f"num_samples: {num_samples} is less than 1")
    sampling = Sampling(temperature, top_k, top_p, min_p, max_new_tokens, stop, seed)
    prompt, stop = with_newlines(prompt), with_newlines(stop)
    ids = encode_prompt(tokenizer, prompt)
    samples = sample_ids(model, ids, sampling, num_samples, tokenizer.encode(stop).tolist())
    return [prompt + tokenizer.decode(new_ids) for new_ids in samples]


def with_newlines(text: str) -> str:
    """The text with its line ends as training has read them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encode_prompt(tokenizer: CharTokenizer, prompt: str) -> Tensor:
    """The prompt's ids, (T,).

    Raises:
        InputError: it is empty or has characters that the vocabulary lacks.
    """
    if not prompt:
        raise InputError("prompt: it is empty; give at least one character to continue")
    if unknown := tokenizer.unknown_characters(prompt):
        hint = "; in bash, $'\\n' is a line break" if "\\" in unknown else ""
        raise InputError(
            f"prompt: {describe_unknown(unknown)}; write it without, or train on a text that has them{hint}"
        )
    return torch.from_numpy(tokenizer.encode(prompt).astype("int64"))


def _until(stop: str, prompt: str, pieces: Iterable[str]) -> Iterator[str]:
    """The prompt, then the pieces, up to where `stop` begins in them."""
    yield prompt
    if not stop:
        yield from pieces
        return
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held.partition(stop)[0]
            return
        # What may be the beginning of `stop` waits for the next piece.
        waiting = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if held.endswith(stop[:n])), 0)
        if ready := held[: len(held) - waiting]:
            yield ready
        held = held[len(held) - waiting :]
    if held:
        yield held
