"""The benchmarks compare like with like."""

import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import bench
from benchmarks.plain import PlainGPT
from minilm import MiniGPT, ModelConfig

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
