"""Training that is interrupted resumes and ends as if it had not been."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import psutil
import pytest
import torch

from minilm import MiniGPT, ModelConfig, train
from minilm.params import TrainParams
from minilm.training.fingerprint import fingerprint, training_inputs
from minilm.training.snapshots import Snapshots, interruption

TOKENS = np.random.default_rng(7).integers(1, 6, 400).astype(np.uint8)
PARAMS = TrainParams(
    block_size=8, embed_dim=16, num_heads=2, num_layers=1, batch_size=4, steps=7, eval_interval=3,
    eval_batches=1, learning_rate=0.01, learning_rate_schedule="cosine", warmup_steps=2, seed=4,
    attention_dropout=0.1, mlp_dropout=0.1,
)  # fmt: skip


def new_model() -> MiniGPT:
    config = ModelConfig(
        6, 8, 16, 2, 1, attention_dropout=0.1, mlp_dropout=0.1, token_shift=0.5, ngram_embedding=3
    )
    return MiniGPT(config, seed=4)


class Killed(BaseException):
    pass


class DyingSnapshots(Snapshots):
    """Saves after every step; after step `last` the process "dies"."""

    last = 10**9

    def due(self) -> bool:
        return True

    def save(self, step: int, state: dict) -> None:
        super().save(step, state)
        if step == self.last:
            raise Killed


def run(params: TrainParams, snapshots: Snapshots | None = None):
    model, reports = new_model(), []
    returned = train(model, TOKENS, TOKENS[:60], params, reports.append, snapshots)
    assert returned == reports
    return [now[:5] for now in reports], [p.clone() for p in model.parameters()]


VARIANTS = [{"precision": "fp32"}, {"precision": "bf16"}, {"keep": "best"}, {"grad_accumulation": 2}] + [
    {"optimizer": "muon", "precision": precision} for precision in ("fp32", "bf16")
]


@pytest.mark.parametrize("values", VARIANTS)
def test_after_any_step_it_resumes_to_the_same_end(tmp_path, values):
    params = TrainParams(**PARAMS.model_dump() | values)
    curve, weights = run(params)
    for last in range(1, 8):
        snapshots = DyingSnapshots(tmp_path / str(last), 1)
        snapshots.last = last
        with pytest.raises(Killed):
            run(params, snapshots)
        resumed = Snapshots(tmp_path / str(last), 1)
        assert resumed.load()["step"] == last
        again, same_weights = run(params, resumed)
        assert again == curve
        assert all(torch.equal(p, q) for p, q in zip(weights, same_weights, strict=True))


def test_saving_and_loading_make_no_copy_of_the_state(tmp_path):
    snapshots, state = Snapshots(tmp_path, 1), {"weights": torch.arange(2_000_000.0)}  # 8 MB
    tracemalloc.start()  # of Python's memory, not of tensors
    snapshots.save(1, state)
    loaded = snapshots.load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert torch.equal(loaded["weights"], state["weights"])
    assert peak < 4e6


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    curve, weights = run(PARAMS)
    snapshots = DyingSnapshots(tmp_path, 1)
    snapshots.last = 5
    with pytest.raises(Killed):
        run(PARAMS, snapshots)
    before, newest = sorted(tmp_path.glob("step-*"))
    assert (before.name[:15], newest.name[:15]) == ("step-0000000004", "step-0000000005")
    for damage in (lambda whole: whole[:-7], lambda whole: whole[:900] + b"x" + whole[901:]):
        content = newest.read_bytes()
        newest.write_bytes(damage(content))
        again, same_weights = run(PARAMS, Snapshots(tmp_path, 100))
        assert f"WARNING: {newest} is damaged" in capsys.readouterr().err
        assert again == curve
        assert all(torch.equal(p, q) for p, q in zip(weights, same_weights, strict=True))
        newest.write_bytes(content)
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"")
    assert Snapshots(tmp_path, 1).load() is None


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("os.fsync", lambda _: now.__setitem__(0, now[0] + 3))
    snapshots = Snapshots(tmp_path, 10)
    assert not snapshots.due()
    now[0] += 10
    assert snapshots.due()
    snapshots.save(1, {})  # takes 3 seconds
    now[0] += 599
    assert not snapshots.due()
    now[0] += 2
    assert snapshots.due()


def test_fingerprints_tell_trainings_apart(tmp_path):
    def name(data="x", code="x = 1", deps=("a", "b.py"), environment=(("threads", 2),), **params) -> str:
        for file, content in (("a", data), ("b.py", code), ("c", data)):
            (tmp_path / file).write_text(content)
        stage = {"cmd": "true", "deps": list(deps)}
        (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"train": stage}}))
        params = {"steps": 1, "checkpoint_interval": 60, "eval_interval": 5, **params}
        return fingerprint(training_inputs(tmp_path, params, dict(environment)))

    changed = [
        name(data="y"),
        name(code="x = 2"),
        name(code="y = 1"),
        name(deps=("a", "b.py", "c")),
        name(environment=(("threads", 1),)),
        name(steps=2),
        name(eval_interval=6),  # the loss curve has other points
    ]
    assert len({name(), *changed}) == len(changed) + 1
    assert name(checkpoint_interval=1, launcher="torchrun", device="cpu", precision="auto") == name()
    assert name(code='"""Says what it is."""\n\n\nx = (1)  # and why\n') == name()
    body = "def f():\n    {}return 1\n"
    assert name(code=body.format('"""One."""\n    ')) == name(code=body.format("")) != name()


def test_other_trainings_checkpoints_are_told_of(tmp_path):
    inputs = {"steps": 3, "learning_rate": 0.1, "code.py": "f00"}
    ours = Snapshots(tmp_path / "ours", 1, inputs)
    assert not ours.describe_others()
    Snapshots(tmp_path / "far", 1, {}).save(1, {"weights": torch.ones(500_000)})
    Snapshots(tmp_path / "near", 1, inputs | {"learning_rate": 0.2, "code.py": "ba4"}).save(1, {})
    said = f"{tmp_path} has 2.0 MB of checkpoints of other unfinished trainings; the nearest differs in "
    assert ours.describe_others() == f"{said}code.py, learning_rate; `make clean` removes them"
    ours.save(1, {"weights": torch.ones(10)})
    assert not ours.describe_others()  # as training resumes
    ours.remove()
    (tmp_path / "near" / "inputs.json").write_text("")  # just being written
    assert not ours.describe_others()


def test_signals_are_noted_and_then_again_left_to_others():
    before = signal.getsignal(signal.SIGTERM)
    with interruption() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert sorted(received) == ["SIGINT", "SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) == before

    def elsewhere() -> None:
        with interruption() as received:
            found.append(received)

    found: list[list[str]] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [[]]


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint():
    with interruption() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == ["SIGINT"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# Processes in a project.

STAGE = ("python", "-u", "-m", "stages.train")
WEIGHTS, CURVES = "models/minilm/model.safetensors", "reports/loss.csv"
OUTPUTS = (WEIGHTS, CURVES, "models/minilm/config.json")


@pytest.fixture(scope="module")
def trained(make_project):
    """A project with a training of some seconds, done without interruption, and what it wrote."""
    project = make_project()
    project.set(steps="400", eval_interval="20", checkpoint_interval="0.001", learning_rate="0.01")
    project.dvc("repro", "encode")
    project.commit()
    project.run(*STAGE)
    project.expected = {name: (project.folder / name).read_bytes() for name in OUTPUTS}
    return project


def checkpoints(project) -> list[str]:
    return sorted(path.name[:15] for path in project.folder.glob(".checkpoints/*/step-*"))


@pytest.fixture(autouse=True)
def as_before(request):
    """No test begins with what another has left."""
    if "trained" in request.fixturenames:
        trained = request.getfixturevalue("trained")
        shutil.rmtree(trained.folder / ".checkpoints", ignore_errors=True)
        trained._git("checkout", "--quiet", "HEAD", "params.yaml")


def start(project, *command: str, **env: str) -> subprocess.Popen:
    """The command, running in the project."""
    streams = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=project.folder, env=project.env | env, **streams)


def interrupt(project, number: int, after: str) -> str:
    """Start the stage, send it the signal when it has printed `after`, and return all that it printed."""
    process = start(project, *STAGE)
    printed = ""
    for line in process.stdout:
        printed += line
        if after in line:
            process.send_signal(number)
    assert process.wait(60) != 0
    return printed


def assert_as_never_interrupted(project, output: str, names=OUTPUTS) -> None:
    assert re.search(r"train: resuming from the checkpoint after step \d+ of 400", output)
    for name in names:
        assert (project.folder / name).read_bytes() == project.expected[name], name
    assert not checkpoints(project)


def test_killed_it_resumes_and_writes_the_same_bytes(trained):
    printed = interrupt(trained, signal.SIGKILL, "step  60/400")
    assert "step 400/400" not in printed
    assert checkpoints(trained)
    interrupt(trained, signal.SIGKILL, "step 200/400")  # and once more
    assert_as_never_interrupted(trained, trained.run(*STAGE).stdout)


def test_a_second_start_waits_for_the_first_and_resumes_from_its_checkpoint(trained):
    with start(trained, sys.executable, *STAGE[1:]) as first:  # only a real interpreter can be stopped
        for line in first.stdout:
            if "step 100/400" in line:
                first.send_signal(signal.SIGSTOP)
                break
        with start(trained, *STAGE) as second:
            for line in second.stdout:
                if line == "train: another process runs exactly this training; waiting for it to end\n":
                    first.kill()
                    break
            printed = second.stdout.read()
    assert_as_never_interrupted(trained, printed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_a_checkpoint_and_says_so(trained, number):
    trained.set(checkpoint_interval="1000")
    printed = interrupt(trained, number, "step 100/400")
    found = re.search(
        rf"error: stopped by {number.name} after step (\d+) of 400; the checkpoint is saved, and the same "
        "command resumes from it",
        printed,
    )
    assert "Traceback" not in printed
    assert checkpoints(trained) == [f"step-{int(found[1]):010}"]
    # The interval is no part of what is trained, but of config.json.
    output = trained.run(*STAGE).stdout
    trained.set(checkpoint_interval="0.001")
    assert f"resuming from the checkpoint after step {found[1]} of 400" in output
    assert_as_never_interrupted(trained, output, (WEIGHTS, CURVES))


def test_forced_it_resumes_too(trained):
    interrupt(trained, signal.SIGTERM, "step 100/400")
    assert_as_never_interrupted(trained, trained.dvc("repro", "--force", "--single-item", "train"))


def test_changed_parameters_are_another_training_changed_comments_are_not(trained):
    interrupt(trained, signal.SIGTERM, "step 100/400")
    trained.set(learning_rate="0.02")
    printed = trained.run(*STAGE).stdout
    assert "resuming" not in printed
    assert re.search(r"train: .* MB of checkpoints .*; the nearest differs in learning_rate;", printed)
    trained.set(learning_rate="0.01")
    code = trained.folder / "minilm/training/loop.py"
    code.write_text("# A comment changes nothing.\n" + code.read_text())
    assert_as_never_interrupted(trained, trained.run(*STAGE).stdout)


def test_an_experiments_checkpoint_is_kept_in_the_main_workspace(trained, tmp_path):
    # DVC_ROOT names the main workspace also where an experiment runs in a temporary folder.
    trained.env["DVC_ROOT"] = str(tmp_path)
    try:
        interrupt(trained, signal.SIGTERM, "step 100/400")
    finally:
        del trained.env["DVC_ROOT"]
    assert not checkpoints(trained)
    assert list(tmp_path.glob(".checkpoints/*/step-*"))


IN_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
MAIN = ("main.py", "--train", "--seed", "7")


@pytest.mark.parametrize(
    ("arguments", "stop", "status"),
    [
        (("-m", "dvc", "repro"), "Ctrl-C", 255),
        (("-m", "dvc", "exp", "run"), "Ctrl-C", 255),
        (MAIN, "Ctrl-C", 130),
        (MAIN, "SIGTERM", 130),
    ],
)
def test_in_a_terminal_the_stage_saves_and_dvc_cleans_up(trained, arguments, stop, status):
    # Fresh interpreters: the preloaded ones are in sessions of their own, which the terminal does not reach.
    # The stage that `dvc` starts may be one: its launcher is in the terminal's, and passes the signal on.
    trained.set(steps="1000000")
    printed = ""
    command = (sys.executable, "-c", IN_A_TERMINAL, sys.executable, *arguments)
    with start(trained, *command) as terminal:
        for line in terminal.stdout:
            printed += line
            if "100/1000000" in line and stop == "Ctrl-C":
                terminal.stdin.write("\x03")
                terminal.stdin.flush()
            elif "100/1000000" in line:
                psutil.Process(terminal.pid).children()[0].terminate()
    assert terminal.returncode == status, printed
    assert "the checkpoint is saved, and the same command resumes from it" in printed
    assert "Traceback" not in printed
    assert checkpoints(trained)
    assert trained.read(".dvc/tmp/rwlock") == "{}"
    assert trained._git("branch", "--show-current")
    # DVC leaves its EXEC_HEAD after each experiment.
    assert trained._git("for-each-ref", "refs/exps/exec").split()[2:] in ([], ["refs/exps/exec/EXEC_HEAD"])
    assert "params.yaml" not in trained._git("diff", "--cached", "--name-only")
