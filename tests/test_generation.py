import numpy as np
import pytest
import torch

from minilm import generate, stream
from minilm.errors import InputError
from minilm.generation import probabilities

PROMPT = "the quick"


def test_stream_gives_what_generate_gives_the_prompt_first(tiny_model):
    text = generate(*tiny_model, PROMPT, max_new_tokens=40, seed=7)
    pieces = list(stream(*tiny_model, PROMPT, max_new_tokens=40, seed=7))
    assert pieces[0] == PROMPT
    assert [len(piece) for piece in pieces[1:]] == [1] * 40
    assert "".join(pieces) == text
    assert generate(*tiny_model, PROMPT, max_new_tokens=40, seed=8) != text
    assert "\ufffd" not in text


def test_greedy_is_the_argmax_of_the_latest_window(tiny_model):
    model, tokenizer = tiny_model
    ids = list(tokenizer.encode(PROMPT))
    for _ in range(30):  # beyond block_size
        with torch.no_grad():
            logits = model(torch.tensor([ids[-16:]]).long())[0, -1]
        logits[0] = -torch.inf
        ids.append(int(logits.argmax()))
    assert generate(model, tokenizer, PROMPT, 30, temperature=0) == tokenizer.decode(np.array(ids))


def test_drawing_follows_the_probabilities_and_leaves_torchs_generator_alone(tiny_model):
    model, tokenizer = tiny_model
    with torch.no_grad():
        logits = model(torch.from_numpy(tokenizer.encode("t").astype("int64"))[None])[0, -1]
    expected = probabilities(logits, 1.0, 0, 1.0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    counts = np.zeros(tokenizer.vocab_size)
    for seed in range(1500):
        counts[tokenizer.encode(generate(model, tokenizer, "t", 1, 1.0, seed=seed)[-1])] += 1
    assert torch.equal(torch.get_rng_state(), state)
    # Chi-squared with about 28 degrees of freedom: above 60 once in 2,000 times, and the seeds are fixed.
    kept = expected.numpy() > 0
    chance = expected.numpy()[kept] * 1500
    assert ((counts[kept] - chance) ** 2 / chance).sum() < 60


def test_settings_by_hand():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))  # the first is the unknown character
    close = torch.testing.assert_close
    close(probabilities(logits.clone(), 1.0, 0, 1.0), torch.tensor([0, 0.5, 0.3, 0.2]))
    close(probabilities(logits.clone(), 1.0, 2, 1.0), torch.tensor([0, 0.625, 0.375, 0]))
    close(probabilities(logits.clone(), 1.0, 99, 1.0), torch.tensor([0, 0.5, 0.3, 0.2]))
    close(probabilities(logits.clone(), 1.0, 0, 0.6), torch.tensor([0, 0.625, 0.375, 0]))
    close(probabilities(logits.clone(), 1.0, 0, 1e-9), torch.tensor([0.0, 1, 0, 0]))
    close(probabilities(logits.clone(), 0.5, 0, 1.0), torch.tensor([0, 0.25, 0.09, 0.04]) / 0.38)
    close(probabilities(logits.clone(), 0, 0, 1.0), torch.tensor([0.0, 1, 0, 0]))
    close(probabilities(logits.clone(), 1e-30, 0, 1.0), torch.tensor([0.0, 1, 0, 0]))
    close(probabilities(torch.zeros(4), 1.0, 2, 1.0).count_nonzero(), torch.tensor(2))


def test_what_cannot_be_continued(tiny_model):
    with pytest.raises(InputError, match=r"never saw '日' \(U\+65E5\), 'Z' \(U\+005A\);"):
        stream(*tiny_model, "the 日日 Z")
    with pytest.raises(InputError, match="it is empty"):
        generate(*tiny_model, "")
    for bad in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"max_new_tokens": -1}):
        with pytest.raises(InputError, match="at least 0"):
            generate(*tiny_model, PROMPT, **bad)
