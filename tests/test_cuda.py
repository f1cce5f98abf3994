"""On a GPU: training in bfloat16, resuming, compilation, generation, evaluation. Elsewhere skipped."""

import numpy as np
import pytest
import torch

from minilm import MiniGPT, ModelConfig, generate, train
from minilm.evaluation.scoring import evaluate
from minilm.params import TrainParams
from minilm.training.snapshots import Snapshots

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
TOKENS = np.random.default_rng(7).integers(1, 6, 4000).astype(np.uint8)
PARAMS = TrainParams(
    block_size=16, embed_dim=32, num_heads=2, num_layers=2, batch_size=8, steps=12, eval_interval=4,
    eval_batches=2, learning_rate=0.01, seed=4, mlp_dropout=0.1,
)  # fmt: skip


def run(device: str, snapshots: Snapshots | None = None, **values):
    params = TrainParams(**PARAMS.model_dump() | values)
    model, film = MiniGPT(ModelConfig.from_params(6, params), seed=4).to(device), {}
    reports = train(model, TOKENS, TOKENS[:200], params, snapshots=snapshots, film=film)
    assert {tensor.device.type for tensor in film.values()} == {"cpu"}
    return [report[:5] for report in reports], model


@pytest.mark.parametrize(
    "values", [{}, {"optimizer": "muon"}, {"compile": True}, {"grad_accumulation": 2}], ids=str
)
def test_the_curve_in_bfloat16_is_that_of_a_cpu(values):
    values |= {"mlp_dropout": 0.0}
    curve, _ = run("cuda", precision="bf16", **values)
    expected, _ = run("cpu", precision="fp32", **values | {"compile": False})
    for now, then in zip(curve, expected, strict=True):
        assert now == pytest.approx(then, rel=0.05)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_it_resumes_to_the_same_end(tmp_path, keep):
    class Killed(Exception):
        pass

    class Dying(Snapshots):
        def due(self):
            return True

        def save(self, step, state):
            super().save(step, state)
            if step == 6:
                raise Killed

    curve, model = run("cuda", keep=keep)
    with pytest.raises(Killed):
        run("cuda", Dying(tmp_path, 60), keep=keep)
    again, same = run("cuda", Snapshots(tmp_path, 60), keep=keep)
    assert again == curve
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), same.parameters(), strict=True))


def test_it_writes_and_scores_as_on_a_cpu(tiny_model):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode("the quick brown fox jumps over the lazy dog.\n" * 5)
    text, scores = generate(model, tokenizer, "the ", 40, temperature=0), evaluate(model, tokenizer, tokens)
    model.to("cuda")
    try:
        assert generate(model, tokenizer, "the ", 40, temperature=0) == text
        assert evaluate(model, tokenizer, tokens).loss == pytest.approx(scores.loss, abs=1e-3)
    finally:
        model.to("cpu")
