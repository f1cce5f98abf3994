"""MiniLM's command line: train a model as a DVC experiment, or generate text with the trained one."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from minilm.errors import InputError, UserError
from minilm.files import expand_home, replace_what_cannot_be_shown
from minilm.params import FIELDS, STAGES, SampleParams, allowed, default_text, load_params, load_recipe

ROOT = Path(__file__).resolve().parent
PARAMS, RECIPES, MODEL = ROOT / "params.yaml", ROOT / "recipes", ROOT / "models" / "minilm"


def main() -> None:
    """Read the flags and do what they say."""
    replace_what_cannot_be_shown()
    parser = make_parser()
    arguments = vars(parser.parse_args(joined(sys.argv[1:])))
    overrides = {key: arguments[key] for key in FIELDS if arguments[key] is not None}
    try:
        if arguments["recipe"] and arguments["train"]:
            overrides = load_recipe(RECIPES / f"{arguments['recipe']}.yaml") | overrides
        if arguments["seconds"] and arguments["steps"]:
            parser.error("--seconds sets steps; give one of the two")
        if arguments["train"]:
            sys.exit(train(overrides, arguments["seconds"]))
        with_train = [key for key in ("recipe", "seconds") if arguments[key]]
        if foreign := with_train + [key for key in overrides if key not in SampleParams.model_fields]:
            parser.error(f"--{foreign[0]} goes with --train; the model in models/minilm is already trained")
        generate(overrides)
    except BrokenPipeError:
        # The reader, such as `head`, has ended; nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def make_parser() -> argparse.ArgumentParser:
    """The command line: every key of params.yaml is a flag, described by the schema."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="python main.py --train [--recipe modern] [--seconds 60] [--steps 500 --embed_dim 256 ...]\n"
        '       python main.py --generate [--prompt "The quick brown fox" --temperature 0.5 ...]',
        epilog="A flag that is not given takes its value from params.yaml. --train writes those that are "
        "given into params.yaml, as `dvc exp run -S` does.",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--train", action="store_true", help="run the pipeline as a DVC experiment")
    action.add_argument("--generate", action="store_true", help="write text with models/minilm, as a stream")
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser.add_argument(
        "--recipe", choices=recipes, help="with --train: start from these parameters; other flags change them"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="X",
        help="with --train: choose steps so that training takes about so long on this machine",
    )
    described = set()
    for stage, cls in STAGES.items():
        group = parser.add_argument_group(stage + (" (also with --generate)" if cls is SampleParams else ""))
        for key, field in cls.model_fields.items():
            if key not in described:
                described.add(key)
                text = f"{field.description} ({allowed(key)}; default {default_text(key)!r})"
                group.add_argument(f"--{key}", metavar="X", help=text.replace("%", "%%"))
    return parser


def _seconds(text: str) -> float:
    """A time that is worth measuring."""
    with suppress(ValueError):
        if 1 <= (seconds := float(text)) <= 10**7:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10,000,000")


def joined(words: list[str]) -> list[str]:
    """Each flag and its value as one word, since argparse would take a value such as `-x` for a flag."""
    flags, found = {f"--{key}" for key in FIELDS}, list[str]()
    for word in words:
        if found and found[-1] in flags and word not in {*flags, "--train", "--generate", "--recipe"}:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def train(overrides: dict[str, str], seconds: float | None) -> int:
    """Write the overrides into params.yaml and run the experiment; returns DVC's exit status.

    With `seconds`, the number of steps that take about so long is measured first and written there too, so
    that the result can be reproduced from params.yaml like any other; at most half of them are warmup.
    """
    for key in ("dataset", "init_from"):
        if overrides.get(key):
            overrides[key] = as_seen_from_root(overrides[key])
    later = {"steps", "warmup_steps"} if seconds else set()  # written when they are known
    params = load_params(PARAMS, overrides | ({"steps": str(10**9)} if seconds else {}))
    require_git()
    now = overrides.keys() - later
    write_params({key: value for part in params for key, value in part.model_dump().items() if key in now})
    # The stages are started as `python`: the one that runs this.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path}
    if seconds:
        if status := run_to_its_end([sys.executable, "-m", "dvc", "repro", "encode"], env):
            return status
        command = [*shlex.split(params.train.launcher), "-m", "stages.steps", str(seconds)]
        measured = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        if measured.returncode:
            return measured.returncode
        steps = int(measured.stdout.split()[-1])
        warmup_steps = min(params.train.warmup_steps, steps // 2)
        write_params({"steps": steps, "warmup_steps": warmup_steps})
        said = f"{steps:,} steps take about" if steps > 1 else "more than 1 step would take longer than"
        print(
            f"{said} {seconds:g} s here; params.yaml now has steps {steps} and warmup_steps {warmup_steps}; "
            "`dvc exp run` repeats or resumes this training"
        )
    return run_to_its_end([sys.executable, "-m", "dvc", "exp", "run"], env)


def require_git() -> None:
    """DVC keeps experiments in git: say what is missing before anything is changed or trained."""
    for command, remedy in (
        ("rev-parse --git-dir", "clone the project with git, or run: git init"),
        ("rev-parse --verify HEAD", "make a first commit: git add --all && git commit --message start"),
        (
            "var GIT_COMMITTER_IDENT",
            'say who you are: git config --global user.name "Your Name" && '
            "git config --global user.email you@example.org",
        ),
    ):
        done = subprocess.run(["git", *command.split()], cwd=ROOT, capture_output=True, text=True)
        refused = "git-dir" in command and any((folder / ".git").exists() for folder in (ROOT, *ROOT.parents))
        if done.returncode and refused:
            raise InputError(f"git refuses {ROOT}: {done.stderr.strip()}")
        if done.returncode:
            raise InputError(f"{ROOT}: DVC keeps experiments in git, which is not ready; {remedy}")


def run_to_its_end(command: list[str], env: dict[str, str]) -> int:
    """Run DVC to its end, also after Ctrl-C, SIGTERM or the terminal's end (SIGHUP).

    The stage saves its checkpoint, and DVC cleans up.

    Returns its exit status, or 130 if it was interrupted. A second Ctrl-C ends the stage at once.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        # `timeout` sends SIGTERM to a process and to its group; that is one.
        if number == signal.SIGINT or number not in received:
            os.killpg(dvc.pid, signal.SIGINT)  # DVC leaves it to the stage, while one runs
        received.append(number)

    # In a group of its own, so that signals reach it from here alone.
    dvc = subprocess.Popen(command, cwd=ROOT, env=env, process_group=0)
    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # as under nohup
    }
    dvc.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return dvc.returncode and (130 if received else dvc.returncode)


def as_seen_from_root(dataset: str) -> str:
    """A path seen from where the caller is, as the pipeline finds it; other names as they are."""
    from minilm.data.corpus import is_hub_name

    path = Path(os.path.abspath(expand_home(dataset)))  # noqa: PTH100 - resolve() would follow links
    if is_hub_name(dataset) or not path.exists():
        return dataset
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def write_params(values: dict[str, Any]) -> None:
    """Change values in params.yaml, keeping its comments."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = sys.maxsize
    content = yaml.load(PARAMS)
    content.update(values)
    temporary = PARAMS.with_suffix(".unfinished")
    with temporary.open("w", encoding="utf-8") as file:  # whatever the locale's encoding
        yaml.dump(content, file)
    temporary.replace(PARAMS)


def generate(overrides: dict[str, str]) -> None:
    """Write text to the screen, character by character."""
    params = load_params(PARAMS, overrides).sample

    import torch

    from minilm.checkpoint import load, read_info
    from minilm.data.tokenizer import describe_unknown
    from minilm.device import choose_device
    from minilm.generation.kv_cache import useful_threads
    from minilm.generation.text import stream, with_newlines

    if not MODEL.exists() and training_is_under_way():
        raise InputError(f"{MODEL} is missing while a training is under way, which writes it at its end")
    source = read_info(MODEL).data
    if source.fallback_for:
        print(source, file=sys.stderr)
    model, tokenizer = load(MODEL, choose_device(params.device))
    torch.set_num_threads(useful_threads(model))
    if "prompt" not in overrides and tokenizer.unknown_characters(with_newlines(params.prompt)):
        known = next(filter(str.isalpha, tokenizer.characters), tokenizer.characters[0])
        raise InputError(
            f"prompt: {params.prompt!r}, from params.yaml, has characters that the model never saw; give "
            f"another, such as --prompt {shlex.quote(known)}"
        )
    if unknown := tokenizer.unknown_characters(with_newlines(params.stop)):
        print(f"WARNING: stop: {describe_unknown(unknown)}, so it never stops there", file=sys.stderr)
    settings = params.model_dump(exclude={"num_samples", "sample_seed", "device"})
    # One text is what a prompt asks for, unless more are asked for here.
    for number in range(params.num_samples if "num_samples" in overrides else 1):
        for text in stream(model, tokenizer, **settings, seed=params.sample_seed + number):
            print(text, end="", flush=True)
        print("\n")


def training_is_under_way() -> bool:
    """Whether a process holds the lock of a training."""
    for path in (ROOT / ".checkpoints").glob("*.lock"):
        try:
            FileLock(path).acquire(blocking=False).lock.release()
        except Timeout:
            return True
    return False


if __name__ == "__main__":
    main()
