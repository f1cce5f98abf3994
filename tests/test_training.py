import json
import math
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from conftest import ROOT
from minilm import CharTokenizer, MiniGPT, ModelConfig, train
from minilm.checkpoint import INIT_FROM
from minilm.data.batches import random_batch
from minilm.data.provenance import Source
from minilm.device import choose_precision
from minilm.errors import InputError, TrainingDiverged
from minilm.params import TrainParams, load_params
from minilm.training import loop
from minilm.training.distributed import Workers
from minilm.training.loop import Training
from minilm.training.reports import best_report
from minilm.training.snapshots import Snapshots
from stages import train as train_stage

PARAMS = TrainParams(
    block_size=8, embed_dim=16, num_heads=2, num_layers=1, batch_size=8, steps=40, eval_interval=15,
    eval_batches=2, learning_rate=0.01, seed=4, precision="fp32",
)  # fmt: skip
TOKENS = np.tile(np.array([1, 2, 3, 4, 5], np.uint8), 60)
NOISE = np.random.default_rng(7).integers(1, 6, 400).astype(np.uint8)
GOLDEN = Path(__file__).parent / "golden_loss.json"


def new_model(**shape) -> MiniGPT:
    return MiniGPT(ModelConfig(6, 8, 16, 2, 1, **shape), seed=4)


def changed(**values) -> TrainParams:
    return TrainParams(**PARAMS.model_dump() | values)


def test_it_learns_a_pattern_and_reports_when_asked():
    seen = []
    reports = train(new_model(), TOKENS, TOKENS[:100], PARAMS, seen.append)
    assert reports == seen
    assert [now.step for now in reports] == [15, 30, 40]
    assert reports[-1].val_loss < 0.2 < 1 < reports[0].train_loss
    assert all(now.tokens_per_second > 0 and now.learning_rate == 0.01 for now in reports)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_same_seed_same_weights_with_dropout_too(optimizer, precision):
    def run(seed: int):
        model = new_model(mlp_dropout=0.2, attention_dropout=0.2)
        torch.manual_seed(np.random.randint(2**31))
        params = changed(seed=seed, optimizer=optimizer, precision=precision)
        losses = [now[:5] for now in train(model, TOKENS, TOKENS[:50], params)]
        return losses, [p.clone() for p in model.parameters()]

    (first, a), (second, b), (third, _) = run(4), run(4), run(5)
    assert first == second
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert first != third


def test_training_equals_a_literal_loop():
    model, twin = new_model(), new_model()
    params = changed(learning_rate_schedule="linear", min_learning_rate_ratio=0.0, warmup_steps=5)
    reports = train(model, TOKENS, TOKENS[:50], params)
    decays = [p for p in twin.parameters() if p.dim() >= 2]
    others = [p for p in twin.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}],
        betas=(0.9, 0.95),
    )
    losses, norms = [], []
    for step in range(1, 41):
        inputs, targets = map(torch.from_numpy, random_batch(TOKENS, 8, 8, seed=4, step=step))
        loss = F.cross_entropy(twin(inputs).transpose(1, 2), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))
        for p in twin.parameters():
            p.grad *= min(1.0, 1.0 / norm)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step / 5 if step <= 5 else 1 - (step - 6) / 35)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
    assert reports[-1].train_loss == pytest.approx(np.mean(losses[30:]), rel=1e-3)
    assert reports[-1].grad_norm == pytest.approx(np.mean(norms[30:]), rel=1e-2)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)


def test_the_loss_curve_is_the_golden_one():
    golden = json.loads(GOLDEN.read_text())
    reports = train(new_model(), NOISE, NOISE[:100], changed(learning_rate=0.003))
    assert [now.step for now in reports] == golden["step"]
    assert [now.train_loss for now in reports] == pytest.approx(golden["train_loss"], abs=1e-4)
    assert [now.val_loss for now in reports] == pytest.approx(golden["val_loss"], abs=1e-4)


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_gradients_give_the_whole_batchs_curve(parts):
    whole = train(new_model(), NOISE, NOISE[:50], PARAMS)
    in_parts = train(new_model(), NOISE, NOISE[:50], changed(grad_accumulation=parts))
    for one, other in zip(whole, in_parts, strict=True):
        assert one[:5] == pytest.approx(other[:5], abs=1e-4)


def test_mixed_precision_and_compilation_keep_the_curve():
    plain = train(new_model(), NOISE, NOISE[:50], PARAMS)
    mixed = train(new_model(), NOISE, NOISE[:50], changed(precision="bf16"))
    compiled = train(new_model(), NOISE, NOISE[:50], changed(compile=True))
    for one, two, three in zip(plain, mixed, compiled, strict=True):
        assert one[:5] == pytest.approx(two[:5], abs=0.02)
        assert one[:5] == pytest.approx(three[:5], abs=1e-3)


def test_the_best_reports_weights_are_kept_if_asked():
    # Pure noise: the model overfits, and the validation loss climbs.
    tokens, val_tokens = NOISE[:60], NOISE[200:]
    params = changed(steps=90, keep="best")
    best, last = new_model(), new_model()
    reports = train(best, tokens, val_tokens, params)
    train(last, tokens, val_tokens, changed(steps=90))
    kept = best_report(reports)
    assert kept.step < 90
    assert kept.val_loss == min(now.val_loss for now in reports)
    until_best = new_model()
    train(until_best, tokens, val_tokens, changed(steps=kept.step))
    for mine, expected, other in zip(
        best.parameters(), until_best.parameters(), last.parameters(), strict=True
    ):
        assert torch.equal(mine, expected)
        assert not torch.equal(mine, other)


def test_without_a_number_of_batches_the_whole_validation_split_is_scored():
    model = new_model()
    (report,) = train(model, NOISE, NOISE[: 5 * 8 + 1], changed(steps=1, eval_batches=0, batch_size=3))
    windows = torch.from_numpy(NOISE[: 5 * 8 + 1].astype(np.int64))
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(windows[i : i + 8][None])[0], windows[i + 1 : i + 9])
            for i in range(0, 40, 8)
        ]
    assert report.val_loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_flops_are_those_that_torch_counts():
    model = MiniGPT(ModelConfig(65, 32, 64, 4, 3))
    model.blocks.apply(lambda module: setattr(module, "fused", False))  # so that all products are seen
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(4, 32, dtype=torch.long)).sum().backward()
    assert model.flops_per_token * 4 * 32 == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_rates_are_those_of_a_clock(tmp_path):
    # Large enough that the steps take almost all of the time; with slow checkpoints, which must not count.
    class Slow(Snapshots):
        def save(self, step, state):
            time.sleep(0.1)
            super().save(step, state)
            self._next = 0

    durations, update = [], Training.update

    def clocked(training, *batch):
        start = time.perf_counter()
        update(training, *batch)
        durations.append(time.perf_counter() - start)

    params = changed(batch_size=64, steps=20, eval_interval=20, eval_batches=1)
    shape = ModelConfig(6, 64, 64, 2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "update", clocked)
        (report,) = train(MiniGPT(shape), NOISE, NOISE[:66], params, snapshots=Slow(tmp_path, 1e-9))
    rate = 19 * 64 * 64 / sum(durations[1:])
    assert report.tokens_per_second == pytest.approx(rate, rel=0.3)
    a = torch.ones(700, 700)
    start = time.perf_counter()
    (a @ a)[0, 0].item()
    reached = 2 * 700**3 / (time.perf_counter() - start)
    peak = rate * MiniGPT(shape).flops_per_token / report.mfu
    assert reached / 3 < peak < 1e15


def test_a_peak_measured_beside_another_process_is_measured_again(monkeypatch):
    peaks = iter([1e9, 3e9, 2e9])
    monkeypatch.setattr(loop, "matmul_peak", lambda *_: next(peaks))
    reports = train(new_model(), NOISE, NOISE[:50], changed(steps=30, eval_interval=10))
    flops = [report.tokens_per_second * new_model().flops_per_token for report in reports]
    assert [f / r.mfu for f, r in zip(flops, reports, strict=True)] == pytest.approx([1e9, 3e9, 3e9])


@contextmanager
def little_memory():
    """300 MB more than is used now."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
@pytest.mark.parametrize(
    ("batch_size", "block_size"), [(65536, 4096), (2048, 512)]
)  # NumPy's end, and torch's
def test_without_memory_it_says_what_to_lower(batch_size, block_size):
    params = changed(batch_size=batch_size, block_size=block_size, eval_batches=1)
    model = MiniGPT(ModelConfig(6, block_size, 16, 2, 1))
    message = rf"batch_size {batch_size:,}, .* takes some [\d,.]+ GB; lower"
    with little_memory(), pytest.raises(InputError, match=message):
        train(model, np.tile(NOISE, 100), NOISE, params)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_a_model_that_does_not_fit_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (train_stage.ENCODED, train_stage.INITIAL, Path("data/raw")):
        folder.mkdir(parents=True)
    Source("x", "file:x", None, {}, "").save(Path("data/raw/source.json"))
    CharTokenizer("ab").save(train_stage.ENCODED / "tokenizer.json")
    (train_stage.INITIAL / INIT_FROM).touch()
    params = load_params(ROOT / "params.yaml", {"embed_dim": "16384", "num_layers": "64"})
    said = "the model alone is too large; lower embed_dim, num_layers or ngram_rows"
    with little_memory(), pytest.raises(InputError, match=said):
        train_stage.train_model(params, Workers(torch.device("cpu")))


def test_compilation_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with pytest.raises(InputError, match=r"compile: the C\+\+ compiler '/nonexistent/g\+\+' is missing"):
        train(new_model(), NOISE, NOISE, changed(compile=True))


def test_losses_of_many_steps_take_little_memory(monkeypatch):
    monkeypatch.setattr(loop, "MEASURED_APART", 4)
    (folded,) = train(new_model(), NOISE, NOISE[:50], changed(eval_interval=40))
    monkeypatch.undo()
    (report,) = train(new_model(), NOISE, NOISE[:50], changed(eval_interval=40))
    assert folded[:5] == report[:5]


def test_precision_auto_is_what_the_hardware_has(monkeypatch):
    cpu = torch.device("cpu")
    for units, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", units.copy)
        assert choose_precision("auto", cpu) == expected
        assert choose_precision("fp32", cpu) == torch.float32
        assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("auto", torch.device("mps")) == torch.float32


def test_splits_too_short_and_batches_that_cannot_be_divided_are_refused():
    with pytest.raises(InputError, match="needs a training split of at least 10 characters, but it has 9"):
        train(new_model(), TOKENS[:9], TOKENS[:50], PARAMS)
    train(new_model(), TOKENS[:10], TOKENS[:2], changed(steps=1))
    with pytest.raises(InputError, match="validation split needs at least 2"):
        train(new_model(), TOKENS, TOKENS[:1], PARAMS)
    with pytest.raises(InputError, match="cannot be divided"):
        train(new_model(), TOKENS, TOKENS, PARAMS.model_copy(update={"grad_accumulation": 3}))


def test_a_loss_that_is_not_finite_stops_before_the_step():
    model = new_model()
    healthy = {name: p.detach().clone() for name, p in model.named_parameters()}
    params = changed(learning_rate=1e4 / 1e3, grad_clip=0.0, steps=200, warmup_steps=3)
    model.final_norm.weight.data.fill_(torch.nan)
    with pytest.raises(
        TrainingDiverged,
        match=r"step 1: the loss is nan and the gradient norm nan; training stopped before it; "
        r"try a lower learning_rate \(10 now\), more warmup_steps \(3 now\) or precision fp32",
    ):
        train(model, TOKENS, TOKENS, params)
    for name, p in model.named_parameters():
        assert name == "final_norm.weight" or torch.equal(p, healthy[name])


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    model = new_model()
    model.blocks[0].mlp.expand.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingDiverged, match=r"step 1: the loss is 1\.\d+ and the gradient norm (inf|nan)"):
        train(model, TOKENS, TOKENS, PARAMS)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
