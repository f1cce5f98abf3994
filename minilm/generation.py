"""Writing text: predict the next character, draw one, append it, again."""

from collections.abc import Iterator

import torch
from torch import Tensor

from minilm.errors import InputError
from minilm.model import MiniGPT
from minilm.tokenizer import UNKNOWN_ID, CharTokenizer


def generate(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The prompt and `max_new_tokens` characters after it; the arguments are those of `stream`."""
    return "".join(stream(model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed))


def stream(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the prompt, then each new character as soon as it is drawn.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompt: at least one character, all of them known to the tokenizer.
        max_new_tokens: characters to write.
        temperature: divides the logits: below 1 safer, above 1 wilder, 0 always the likeliest character.
        top_k: choose among the k likeliest characters; 0, or more than there are, means all.
        top_p: choose among the likeliest characters that together have this probability
            ("The Curious Case of Neural Text Degeneration", Holtzman et al., 2020); 1 means all.
        seed: same model, arguments and seed, same text.

    Raises:
        InputError: the prompt is empty or has unknown characters, or a number is out of its range.
    """
    if unknown := tokenizer.unknown_characters(prompt):
        raise InputError(
            f"prompt: {name_characters(unknown)}; write it without, or train on a text that has them"
        )
    ids = torch.from_numpy(tokenizer.encode(prompt).astype("int64"))
    new_ids = generate_ids(model, ids, max_new_tokens, temperature, top_k, top_p, seed)
    return _stream_text(prompt, tokenizer, new_ids)


def generate_ids(
    model: MiniGPT, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> Iterator[int]:
    """Yield the ids that follow `ids`, (time,); the other arguments are those of `stream`.

    The unknown character is never drawn: it stands for no text.
    """
    if not len(ids):
        raise InputError("prompt: it is empty; give at least one character to continue")
    if max_new_tokens < 0 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError(
            "max_new_tokens, temperature and top_k must be at least 0 and top_p above 0 to 1, "
            f"not {max_new_tokens}, {temperature}, {top_k} and {top_p}"
        )
    return _draw(model, ids, max_new_tokens, temperature, top_k, top_p, seed)


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distribution to draw from: (V,) logits -> (V,) probabilities; see `stream` for the settings."""
    logits = logits.float()
    logits[UNKNOWN_ID] = -torch.inf
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    if 0 < top_k < len(logits):
        # By rank, not by value, so that equal logits cannot let in more than k.
        kept = logits.topk(top_k).indices
        logits = torch.full_like(logits, -torch.inf).index_copy(0, kept, logits[kept])
    # With the largest at 0, a tiny temperature cannot make it overflow.
    distribution = torch.softmax((logits - logits.max()) / temperature, dim=-1)
    if top_p < 1:
        ranked, order = distribution.sort(descending=True)
        # A character stays if those before it have not reached top_p yet, so the likeliest always does.
        ranked = torch.where(ranked.cumsum(0) - ranked < top_p, ranked, 0.0)
        distribution = torch.zeros_like(distribution).index_copy(0, order, ranked / ranked.sum())
    return distribution


def name_characters(characters: list[str]) -> str:
    """Say which characters the model never saw, with their code points, ten at most."""
    named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:10])
    more = f" and {len(characters) - 10} more" if len(characters) > 10 else ""
    return f"the model never saw {named}{more}"


def _stream_text(prompt: str, tokenizer: CharTokenizer, new_ids: Iterator[int]) -> Iterator[str]:
    yield prompt
    for new_id in new_ids:
        yield tokenizer.decode([new_id])


@torch.inference_mode()
def _draw(
    model: MiniGPT, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> Iterator[int]:
    device, block_size = model.token_embedding.weight.device, model.config.block_size
    generator = torch.Generator().manual_seed(seed)
    ids = ids.to(device)
    for _ in range(max_new_tokens):
        # The model sees block_size characters at most: the latest ones.
        ids = ids[-block_size:]
        logits = model(ids[None])[0, -1].cpu()
        new_id = torch.multinomial(probabilities(logits, temperature, top_k, top_p), 1, generator=generator)
        ids = torch.cat([ids, new_id.to(device)])
        yield int(new_id)
