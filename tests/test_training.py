import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minilm import MiniGPT, ModelConfig, train
from minilm.batches import RandomBatches
from minilm.errors import InputError
from minilm.optim import adamw
from minilm.params import TrainParams

PARAMS = TrainParams(
    block_size=8, embed_dim=16, num_heads=2, num_layers=1, batch_size=8, steps=40, eval_interval=15,
    eval_batches=2, learning_rate=0.01, seed=4,
)  # fmt: skip
TOKENS = np.tile(np.array([1, 2, 3, 4, 5], np.uint8), 60)


def new_model(**shape) -> MiniGPT:
    return MiniGPT(ModelConfig(6, 8, 16, 2, 1, **shape), seed=4)


def test_it_learns_a_pattern_and_reports_when_asked():
    seen = []
    reports = train(new_model(), TOKENS, TOKENS[:100], PARAMS, seen.append)
    assert reports == seen
    assert [now.step for now in reports] == [15, 30, 40]
    assert reports[-1].val_loss < 0.2 < 1 < reports[0].train_loss
    assert all(now.tokens_per_second > 0 and now.learning_rate == 0.01 for now in reports)


def test_same_seed_same_weights_with_dropout_too():
    def run(seed: int):
        model = new_model(mlp_dropout=0.2, attention_dropout=0.2)
        torch.manual_seed(np.random.randint(2**31))
        losses = [
            now[:4] for now in train(model, TOKENS, TOKENS[:50], PARAMS.model_copy(update={"seed": seed}))
        ]
        return losses, [p.clone() for p in model.parameters()]

    (first, a), (second, b), (third, _) = run(4), run(4), run(5)
    assert first == second
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert first != third


def test_training_equals_a_literal_loop():
    model, twin = new_model(), new_model()
    reports = train(model, TOKENS, TOKENS[:50], PARAMS)
    batches = RandomBatches(TOKENS, 8, 8, seed=4)
    decays = [p for p in twin.parameters() if p.dim() >= 2]
    others = [p for p in twin.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}],
        lr=0.01,
        betas=(0.9, 0.95),
    )
    losses = []
    for _ in range(40):
        inputs, targets = map(torch.from_numpy, next(batches))
        loss = F.cross_entropy(twin(inputs).transpose(1, 2), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))
        for p in twin.parameters():
            p.grad *= min(1.0, 1.0 / norm)
        optimizer.step()
        losses.append(loss.item())
    assert reports[-1].train_loss == pytest.approx(np.mean(losses[30:]), rel=1e-3)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)


def test_every_parameter_is_optimised_exactly_once():
    model = new_model()
    groups = adamw(model, 0.1, (0.9, 0.95), 0.1).param_groups
    optimised = [id(p) for group in groups for p in group["params"]]
    assert sorted(optimised) == sorted(map(id, model.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}


def test_texts_too_short_and_diverging_training_are_refused():
    with pytest.raises(InputError, match="needs a training text of at least 10 characters, but it has 9"):
        train(new_model(), TOKENS[:9], TOKENS[:50], PARAMS)
    train(new_model(), TOKENS[:10], TOKENS[:2], PARAMS.model_copy(update={"steps": 1}))
    with pytest.raises(InputError, match="validation text needs at least 2"):
        train(new_model(), TOKENS, TOKENS[:1], PARAMS)
    model = new_model()
    model.final_norm.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss is nan by step 15; take a lower learning_rate"):
        train(model, TOKENS, TOKENS, PARAMS)
