"""Several processes train one model: real ones, started by torchrun, on the CPU."""

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable

import psutil
import pytest
from safetensors.torch import load_file

from conftest import ROOT, stages_run

TORCHRUN = "torchrun --standalone --nproc-per-node 2"
PARAMS = {
    "launcher": TORCHRUN,
    "steps": "20",
    "eval_interval": "5",
    "batch_size": "4",
    "token_shift": "0.5",
    "ngram_embedding": "3",
    "ngram_rows": "500",
    "precision": "fp32",
    "eval_batches": "0",
    "learning_rate": "0.003",
    "grad_accumulation": "1",
    "keep": "last",
    "sharding": "none",
    "compile": "false",
    "checkpoint_interval": "60",
}


@pytest.fixture(scope="module")
def alone(make_project):
    """A project trained by one process."""
    project = make_project()
    project.set(**PARAMS | {"launcher": "python"})
    project.dvc("repro", "train")
    project.commit()
    project.curve = curve(project)
    project.weights = load_file(project.folder / "models/minilm/model.safetensors")
    project.film = load_file(project.folder / "models/film.safetensors")
    return project


def curve(project) -> list[list[float]]:
    return [[float(v) for v in row] for row in csv.reader(project.read("reports/loss.csv").splitlines()[1:])]


def assert_same_training(project) -> None:
    for ours, theirs in zip(curve(project), project.curve, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)
    for file, expected in (("minilm/model", project.weights), ("film", project.film)):
        weights = load_file(project.folder / f"models/{file}.safetensors")
        assert weights.keys() == expected.keys()
        for name, tensor in weights.items():
            assert (tensor - expected[name]).abs().max() < 2e-3, name
    assert json.loads(project.read("models/minilm/config.json"))["environment"]["processes"] == 2


@pytest.mark.parametrize(
    ("values", "last"),
    [
        ({"grad_accumulation": "2"}, "train"),
        ({"sharding": "fsdp"}, "train"),
        ({"sharding": "fsdp", "keep": "best", "grad_accumulation": "2"}, "evaluate"),
    ],
)
def test_two_processes_give_the_curve_and_weights_of_one(alone, values, last):
    runs = len(alone.mlflow_runs())
    alone.set(**PARAMS | values)
    output = alone.dvc("repro", last)
    assert stages_run(output) == {"train", last}
    assert len(re.findall("step 20/20", output)) == 1
    assert len(alone.mlflow_runs()) == runs + 1
    assert_same_training(alone)


def stage(processes: int) -> list[str]:
    return f"torchrun --standalone --nproc-per-node {processes} -m stages.train".split()


def at_step_5(project, command: list[str], action: Callable[[psutil.Process], None]) -> str:
    """Start the stage, do something to torchrun's process after 5 steps, and return all that is printed."""
    output = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=project.folder, env=project.env, **output)
    printed = ""
    for line in process.stdout:
        printed += line
        if "step  5/20" in line:
            action(psutil.Process(process.pid))
    assert process.wait(60) != 0
    return printed


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_lost_process_ends_the_stage_and_the_next_run_resumes(alone, sharding):
    def kill_the_second(torchrun: psutil.Process) -> None:
        next(w for w in torchrun.children() if w.environ()["RANK"] == "1").kill()

    alone.set(**PARAMS | {"checkpoint_interval": "0.001", "sharding": sharding})
    printed = at_step_5(alone, stage(2), kill_the_second)
    assert re.search(r"error: .* the same command resumes from the last checkpoint", printed), printed
    output = alone.run(*stage(2)).stdout
    assert re.search(r"resuming from the checkpoint after step \d+ of 20", output)
    assert_same_training(alone)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        # The signal that torchrun sends for a lost process comes while the error propagates.
        (
            "    try:\n        raise RuntimeError('gloo')\n    finally:\n        stop()",
            "connection to another process",
        ),
        ("    raise RuntimeError('shapes differ')", "\nRuntimeError: shapes differ"),
        ("    stop()", "Signal 15 (SIGTERM)"),
    ],
)
def test_a_lost_connection_is_told_from_other_errors_and_sigterm_waits_for_it(body, said, tmp_path, python):
    (tmp_path / "script.py").write_text(
        "import os, signal\nfrom minilm.training.distributed import join_workers\n"
        "stop = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"with join_workers('cpu'):\n{body}\n"
    )
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON_EXEC": str(python)}
    done = subprocess.run([*command, tmp_path / "script.py"], env=env, capture_output=True, text=True)
    assert said in re.sub(r"\[rank0\]:\s?", "", done.stderr)
    assert ("WorkerLost" in done.stderr) == ("gloo" in body)


def test_told_to_stop_three_processes_resume_to_the_same_bytes(alone):
    # Three, since two numbers have the same sum in any order.
    alone.set(**PARAMS | {"batch_size": "6"})
    alone.run(*stage(3))
    outputs = [alone.folder / name for name in ("models/minilm/model.safetensors", "reports/loss.csv")]
    expected = [path.read_bytes() for path in outputs]
    printed = at_step_5(alone, stage(3), psutil.Process.terminate)
    assert re.search(r"error: stopped by .* after step \d+ of 20; the checkpoint is saved", printed), printed
    assert "Unable to shutdown" not in printed, printed  # torchrun kills what has not ended after 30 seconds
    assert re.search(r"resuming from the checkpoint after step \d+ of 20", alone.run(*stage(3)).stdout)
    assert [path.read_bytes() for path in outputs] == expected


def test_what_cannot_be_divided_is_refused_in_one_line(alone):
    alone.set(**PARAMS | {"batch_size": "5"})
    output = alone.run(*TORCHRUN.split(), "-m", "stages.train", ok=False).stdout
    assert "error: batch_size: 5 cannot be divided among 2 processes with 1 micro-batches each" in output
    alone.set(**PARAMS | {"launcher": "python", "sharding": "fsdp"})
    output = alone.dvc("repro", ok=False)
    assert "error: sharding: fsdp needs processes; set launcher to torchrun" in output


def test_without_a_compiler_no_run_begins(alone):
    alone.set(**PARAMS | {"launcher": "python", "compile": "true"})
    runs = len(alone.mlflow_runs())
    output = alone.run("python", "-m", "stages.train", ok=False, CXX="/nonexistent/g++").stdout
    assert "error: compile: the C++ compiler '/nonexistent/g++' is missing" in output
    assert len(alone.mlflow_runs()) == runs
