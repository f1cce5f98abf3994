import math

import pytest
import torch

from minilm import MiniGPT, ModelConfig
from minilm.params import TrainParams
from minilm.training.float32_muon import Float32Muon, orthogonalize
from minilm.training.optim import learning_rate_at, make_optimizers


def new_model(**shape) -> MiniGPT:
    return MiniGPT(ModelConfig(6, 8, 16, 2, 1, **shape), seed=4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"biases": False, "normalization": "rmsnorm", "qk_norm": True, "position": "rope"},
        {"tied_embeddings": False, "activation": "swiglu", "position": "alibi"},
    ],
)
def test_every_parameter_is_optimized_exactly_once(optimizer, shape):
    model = new_model(**shape)
    optimizers = make_optimizers(model, TrainParams(optimizer=optimizer))
    groups = [group for one in optimizers for group in one.param_groups]
    optimized = [id(p) for group in groups for p in group["params"]]
    assert sorted(optimized) == sorted(map(id, model.parameters()))
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].dim() >= 2 else 0.0)


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.optim.Muon), ("fp32", Float32Muon)])
def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(precision, kind):
    model = new_model()
    muon, adamw = make_optimizers(model, TrainParams(optimizer="muon", precision=precision))
    assert type(muon) is kind
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in muon.param_groups[0]["params"]} == {
        f"blocks.0.{part}.weight"
        for part in ("attention.qkv", "attention.projection", "mlp.expand", "mlp.projection")
    }


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5)])
def test_orthogonalizing_applies_muons_polynomial_to_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = orthogonalize(matrix, (3.4445, -4.7750, 2.0315))
    torch.testing.assert_close(found.double(), u @ values.diag() @ v, atol=1e-4, rtol=1e-4)


def test_muon_in_float32_takes_the_steps_of_torchs():
    models = [new_model(), new_model()]
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    for cls, model in zip((torch.optim.Muon, Float32Muon), models, strict=True):
        optimizer = cls([p for p in model.blocks.parameters() if p.dim() == 2], **settings)
        generator = torch.Generator().manual_seed(2)
        for _ in range(3):
            for p in model.blocks.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
    start = new_model()
    for theirs, ours, first in zip(*(m.blocks.parameters() for m in (*models, start)), strict=True):
        # What torch computes in bfloat16 has three digits.
        assert (ours - theirs).norm() <= 0.02 * (theirs - first).norm()
        assert first.dim() < 2 or not torch.equal(ours, first)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_muons_step_is_orthogonal_and_as_large_as_adamws(precision):
    model = new_model(biases=False)
    params = TrainParams(optimizer="muon", learning_rate=0.01, weight_decay=0, precision=precision)
    optimizers = make_optimizers(model, params)
    weight = model.blocks[0].mlp.expand.weight  # (64, 16)
    before = weight.detach().clone()
    ids = torch.randint(0, 6, (4, 8), generator=torch.Generator().manual_seed(1))
    model(ids).square().mean().backward()
    gradient = torch.linalg.svdvals(weight.grad)
    for optimizer in optimizers:
        optimizer.step()
    step = (weight.detach() - before).double()
    lengths = torch.linalg.svdvals(step)
    # The Newton-Schulz iteration, as Muon runs it, brings all but the smallest to between 0.7 and 1.2.
    assert lengths.max() / lengths.median() < 1.6 < 3 < gradient.max() / gradient.median()
    assert step.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.25)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.84, 0.68, 0.52, 0.36]),
        (
            "cosine",
            [0.25, 0.5, 0.75, 1, *(0.2 + 0.8 * (1 + math.cos(math.pi * i / 5)) / 2 for i in range(5))],
        ),
    ],
)
def test_learning_rate_rises_and_falls_as_the_schedule_says(schedule, expected):
    params = TrainParams(
        learning_rate=2, learning_rate_schedule=schedule, warmup_steps=4, steps=9, min_learning_rate_ratio=0.2
    )
    found = [learning_rate_at(step, params) / 2 for step in range(1, 10)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 1, 3, 10])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_is_defined_for_every_number_of_steps(warmup, schedule):
    for steps in (1, 2, 3):
        params = TrainParams(warmup_steps=min(warmup, steps), steps=steps, learning_rate_schedule=schedule)
        assert all(0 < learning_rate_at(step, params) <= 0.0003 for step in range(1, steps + 1))
