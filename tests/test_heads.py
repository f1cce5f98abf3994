"""The scores of attention heads, where the right answer is known."""

import numpy as np
import pytest
import torch

from minilm import MiniGPT, ModelConfig
from minilm.evaluation.heads import attention_to_previous, attention_to_successor, head_scores

TOKENS = np.random.default_rng(1).integers(0, 7, 500).astype(np.uint8)


def pointing(targets: list[int]) -> torch.Tensor:
    """Weights (T, T) with which each position attends to one alone."""
    return torch.eye(len(targets))[targets]


def test_hand_made_attention():
    previous = pointing([0, 0, 1, 2, 3, 4, 5, 6])
    # Two copies of abcd: the second a, at 4, attends to the b at 1, and the second d to the a at 4.
    induction = pointing([0, 0, 0, 0, 1, 2, 3, 4])
    uniform = torch.ones(8, 8).tril() / torch.arange(1, 9)[:, None]
    weights = torch.stack([previous, induction, uniform, torch.eye(8)])[None, None]  # (1, 1, H, T, T)
    assert attention_to_previous(weights)[0].tolist() == pytest.approx(
        [1, 1 / 7, sum(1 / n for n in range(2, 9)) / 7, 0]
    )
    assert attention_to_successor(weights)[0].tolist() == pytest.approx(
        [0, 1, sum(1 / n for n in range(5, 9)) / 4, 0]
    )
    both = torch.cat([weights, weights[:, :, [1, 0, 2, 3]]], 1)  # the mean over two sequences
    assert attention_to_previous(both)[0, :2].tolist() == pytest.approx([4 / 7, 4 / 7])


def test_a_model_built_to_look_back_has_the_score_1():
    model = MiniGPT(ModelConfig(7, block_size=8, embed_dim=16, num_heads=2, num_layers=1)).eval()
    with torch.no_grad():
        for parameter in model.blocks[0].attention.parameters():
            parameter.zero_()
        model.token_embedding.weight.zero_()
        model.position_embedding.weight.copy_(torch.eye(8, 16))
        qkv = model.blocks[0].attention.qkv.weight  # queries, keys, values: 16 rows each
        qkv[:8, 1:9] = 50 * torch.eye(8)  # the query of position t is that of the key at t - 1
        qkv[16:24, :8] = 50 * torch.eye(8)
    ((looking, idle),) = head_scores(model, TOKENS)
    assert looking.previous == pytest.approx(1, abs=1e-4)
    assert looking.induction < 1e-4
    assert idle.previous == pytest.approx(sum(1 / n for n in range(2, 9)) / 7)


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 200])
@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:2], np.zeros(50, np.uint8)])
def test_any_window_and_text_will_do(block_size, tokens):
    model = MiniGPT(ModelConfig(7, block_size, embed_dim=16, num_heads=2, num_layers=2, position="rope"))
    scores = head_scores(model.eval(), tokens)
    assert [len(layer) for layer in scores] == [2, 2]
    assert all(0 <= value <= 1 for layer in scores for head in layer for value in head)
    assert head_scores(model, tokens) == scores
