"""Generation as a textbook has it: predict the next character, draw one, append it, repeat.

Everything is computed again for each character. kv_cache.py gives the same ids faster, as long as the text
fits into block_size characters; tests hold it to this file.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minilm.generation.config import Sampling
from minilm.generation.sampling import gumbel_noise, limit
from minilm.model.gpt import MiniGPT


@torch.inference_mode()
def generate_ids(model: MiniGPT, ids: Tensor, sampling: Sampling) -> Iterator[int]:
    """Yield the ids that follow `ids`, (T,), each as soon as it is drawn."""
    noise = gumbel_noise([sampling.seed], model.config.vocab_size, sampling.temperature, ids.device)
    for _ in range(sampling.max_new_tokens):
        window = ids[-model.config.block_size :]  # (T,), what the model can see
        logits = model(window[None])[:, -1]  # (1, V), for the character after the last one
        new = (limit(logits, sampling) + next(noise)).argmax(-1)  # (1,), a draw from the softmax
        yield int(new)
        ids = torch.cat([ids, new])
