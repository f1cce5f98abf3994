"""The benchmarks compare like with like."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import bench, ladder
from benchmarks.plain import PlainGPT
from minilm import MiniGPT, ModelConfig, train
from minilm.errors import TrainingDiverged
from minilm.params import load_params

ROOT = Path(__file__).parent.parent


def test_the_plain_model_is_the_default_one():
    ours, plain = MiniGPT(ModelConfig(65)), PlainGPT(65)
    plain.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 65, (2, 128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(plain(ids), ours(ids))
    assert sum(p.numel() for p in plain.parameters()) == ours.num_parameters


@pytest.mark.parametrize("words", [["plain"], ["minilm", "--set", "precision=fp32", "keep=best"]])
def test_a_measurement_is_printed_as_json(words, python):
    command = [python, "-m", "benchmarks.measure", *words, "--steps", "5"]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(printed)
    assert found["characters_per_second"] > 100
    assert found["peak_mb"] > 100


def test_the_machine_is_named_where_the_kernel_does_not_tell_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CPUINFO", tmp_path / "cpuinfo")
    assert f" cores of {platform.machine()} (" in bench.conditions()  # as on macOS
    bench.CPUINFO.write_text("processor : 0\n")
    assert f" cores of {platform.machine()} (" in bench.conditions()  # as on ARM


def test_a_ladder_trains_each_candidate_with_each_seed_and_pairs_them():
    data = ladder.split("to be or not to be, that is the question. " * 100)
    shape = {"embed_dim": "8", "num_heads": "1", "block_size": "16", "batch_size": "4", "eval_batches": "0"}
    params = load_params(ROOT / "params.yaml", shape | {"steps": "6"}).train
    candidates = {ladder.RECIPE: params, "faster": params.model_copy(update={"learning_rate": 0.01})}
    trials = [
        ladder.trial(name, params, seed, data) for seed in (1, 2) for name, params in candidates.items()
    ]
    model = MiniGPT(ModelConfig.from_params(data.vocab_size, params), seed=2)
    expected = train(model, *data[:2], params.model_copy(update={"seed": 2}))[-1].val_loss
    assert trials[2][:4] == (ladder.RECIPE, 2, 6, 6 * 4 * 16)
    assert trials[2].val_loss == expected
    header, _, recipe, faster = ladder.table(trials).splitlines()
    differences = [trials[1].val_loss - trials[0].val_loss, trials[3].val_loss - trials[2].val_loss]
    assert f" {sum(differences) / 2:+.4f} |" in faster
    assert recipe.count("|") == faster.count("|") == header.count("|")
    wide = {"narrow": params, "wide": params.model_copy(update={"batch_size": 400})}
    narrow, wide = ladder.of_equal_time(wide, data, 10).values()
    assert narrow.steps > wide.steps
    warm = params.model_copy(update={"warmup_steps": 6})
    shortest = ladder.of_equal_time({"narrow": warm}, data, 1e-6)["narrow"]
    assert (shortest.steps, shortest.warmup_steps) == (1, 0)


def test_a_ladder_that_fails_keeps_the_trials_before(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    done = ladder.Trial(ladder.RECIPE, 1, 6, 384, 0.5, 2.25)
    monkeypatch.setattr(
        ladder, "trial", Mock(side_effect=[done, TrainingDiverged("step 3: the loss is inf")])
    )
    words = ["ladder", f"{tmp_path}/text.txt", "learning_rate=9", "--output", f"{tmp_path}/trials.csv"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="error: step 3: the loss is inf"):
        ladder.main()
    _, row = (tmp_path / "trials.csv").read_text().splitlines()
    assert row == "the recipe,1,6,384,0.5,2.25"


@pytest.mark.parametrize(
    ("change", "said"),
    [("mlp_dropout", "mlp_dropout: '' is not allowed"), ("depth=3", "depth: no such parameter")],
)
def test_a_ladder_says_what_is_wrong_with_a_change(change, said, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    words = ["ladder", f"{tmp_path}/text.txt", "--output", f"{tmp_path}/trials.csv", change]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        ladder.main()


TO_TEN = "--seeds: an interval needs 2 to 10 different ones"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seeds 1", TO_TEN),
        ("--seeds 1 1", TO_TEN),
        ("--seeds 1 2 3 4 5 6 7 8 9 10 11", TO_TEN),
        ("--seconds 0", "--seconds: must be above 0"),
        ("--seconds -5", "--seconds: must be above 0"),
    ],
)
def test_a_ladder_says_what_is_wrong_with_a_flag(flags, said, monkeypatch, capsys):
    words = ["ladder", "text.txt", "seed=1", "--output", "trials.csv", *flags.split()]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        ladder.main()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("count", range(2, 11))
def test_the_interval_is_that_of_students_t(count):
    differences = np.random.default_rng(count).normal(0.1, 0.02, count)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    mean, low, high = ladder.paired_interval(differences.tolist())
    assert mean == pytest.approx(differences.mean())
    assert (low, high) == pytest.approx(tuple(expected), rel=1e-3)
