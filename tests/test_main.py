"""The command line: what it takes, and what it says of a machine or a model that is not ready."""

import os
import signal
import subprocess
import time

import pytest
import torch

import main
from conftest import ROOT
from minilm import MiniGPT, ModelConfig, checkpoint, train
from minilm.data.batches import write_tokens
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.errors import InputError
from minilm.params import TrainParams
from minilm.training.distributed import Workers
from minilm.training.fingerprint import training_lock
from stages import steps


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a repository and a model of DNA, as main.py's project."""
    monkeypatch.setattr(main, "ROOT", tmp_path)
    monkeypatch.setattr(main, "MODEL", tmp_path / "models" / "minilm")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    tokenizer = CharTokenizer("ACGT\u2603")
    model = MiniGPT(ModelConfig(tokenizer.vocab_size, 8, 8, 1, 1))
    source = Source("dna", "file:dna", None, {"train": 0}, "")
    checkpoint.save(main.MODEL, model, tokenizer, {}, source, {})
    return tmp_path


def git(*arguments):
    subprocess.run(["git", *arguments], cwd=main.ROOT, check=True, capture_output=True)


def test_what_git_lacks_is_said_before_anything_is_changed(project, monkeypatch):
    with pytest.raises(InputError, match="run: git init"):
        main.require_git()
    git("init")
    with pytest.raises(InputError, match="make a first commit: git add"):
        main.require_git()
    git("commit", "--allow-empty", "--message", "x")
    main.require_git()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(InputError, match=r"(?s)git refuses .*safe\.directory") as refused:
        main.require_git()
    assert "git init" not in str(refused.value)
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    git("config", "user.useConfigOnly", "true")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{name}_NAME")
        monkeypatch.delenv(f"GIT_{name}_EMAIL")
    with pytest.raises(InputError, match=r"git config --global user.name .* git config --global user.email"):
        main.require_git()


def test_a_value_may_look_like_a_flag():
    words = ["--generate", "--prompt", "-x", "--stop", "--", "--steps=3"]
    assert main.joined(words) == ["--generate", "--prompt=-x", "--stop=--", "--steps=3"]
    assert main.make_parser().parse_args(main.joined(words)).prompt == "-x"


def test_the_default_prompt_is_known_to_be_params_yamls(project):
    with pytest.raises(InputError, match=r"'The ', from params.yaml, .* such as --prompt A"):
        main.generate({})


def test_a_line_end_of_windows_in_stop_is_no_unknown_character(project, capsys):
    tokenizer = CharTokenizer("ACGT\n")
    model = MiniGPT(ModelConfig(tokenizer.vocab_size, 8, 8, 1, 1))
    checkpoint.save(main.MODEL, model, tokenizer, {}, Source("dna", "file:dna", None, {"train": 0}, ""), {})
    main.generate({"prompt": "A\r\n", "stop": "\r\n", "max_new_tokens": "3"})
    assert "never" not in capsys.readouterr().err


def test_during_a_training_a_missing_model_is_explained(project):
    (project / "models").rename(project / "elsewhere")
    with pytest.raises(InputError, match="train a model"):
        main.generate({"prompt": "A"})
    (project / ".checkpoints").mkdir()
    with training_lock(project, "x"), pytest.raises(InputError, match="while a training is under way"):
        main.generate({"prompt": "A"})


def test_a_terminal_shows_a_question_mark_for_what_it_lacks(project):
    code = f"import main, pathlib; main.MODEL = pathlib.Path('{main.MODEL}'); main.main()"
    for encoding in ("ascii", "latin-1"):
        done = subprocess.run(
            [
                main.sys.executable,
                "-c",
                code,
                *["--generate", "--prompt", "A☃", "--stop", "Z", "--max_new_tokens", "3"],
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"A?")
        assert b"stop: the model never saw 'Z' (U+005A), so it never stops there" in done.stderr


def test_params_are_written_as_utf8_whatever_the_locale(project):
    path = project / "params.yaml"
    path.write_text('prompt: "Вой"  # русский\nsteps: 5\n', encoding="utf-8")
    code = (
        f"import main, pathlib; main.PARAMS = pathlib.Path({str(path)!r}); main.write_params({{'steps': 6}})"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([main.sys.executable, "-c", code], cwd=ROOT, env=os.environ | plain, check=True)
    assert path.read_text(encoding="utf-8") == 'prompt: "Вой"  # русский\nsteps: 6\n'


def test_what_ends_main_py_is_passed_on_to_dvc(monkeypatch):
    received, numbers = [], (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    class Dvc:
        pid, returncode = 0, 255

        def wait(self):
            for number in (signal.SIGTERM, *numbers):
                signal.raise_signal(number)
            return 255

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Dvc())
    monkeypatch.setattr(os, "killpg", lambda _, number: received.append(number))
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        assert main.run_to_its_end([], {}) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert received == [signal.SIGINT] * 3


@pytest.mark.parametrize(
    "words", [["--generate", "--seconds", "9"], ["--train", "--seconds", "9", "--steps", "9"]]
)
def test_seconds_go_with_train_and_without_steps(words, monkeypatch, capsys):
    monkeypatch.setattr(main.sys, "argv", ["main.py", *words])
    with pytest.raises(SystemExit):
        main.main()
    assert "--seconds" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0.5", "nan", "1e8", "ten"])
def test_a_time_out_of_range_is_refused_with_the_range(value, monkeypatch, capsys):
    monkeypatch.setattr(main.sys, "argv", ["main.py", "--train", "--seconds", value])
    with pytest.raises(SystemExit):
        main.main()
    assert f"--seconds: '{value}' is not a number from 1 to 10,000,000\n" in capsys.readouterr().err


def test_as_many_steps_as_fit_into_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "to be or not to be, that is the question. " * 100
    tokenizer = CharTokenizer.from_text(text)
    for split in ("train", "validation"):
        write_tokens(tmp_path / f"{split}.npy", [tokenizer.encode(text)], tokenizer.dtype)
    tokenizer.save(tmp_path / "tokenizer.json")
    monkeypatch.setattr(steps, "ENCODED", tmp_path)
    params = TrainParams(block_size="16", embed_dim="16", eval_interval="20")
    fitting = steps.steps_within(4, params, Workers(torch.device("cpu")))
    tokens = tokenizer.encode(text)
    model = MiniGPT(ModelConfig.from_params(tokenizer.vocab_size, params), seed=params.seed)
    start = time.perf_counter()
    train(model, tokens, tokens, params.model_copy(update={"steps": fitting}))
    assert 1 < time.perf_counter() - start < 16  # the machine's speed may change meanwhile
