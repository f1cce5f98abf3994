"""Run the lessons' experiments and write their tables: python -m docs.lessons.run [LESSON ...].

The experiments are in experiments.yaml, and the commands that a lesson shows are made from it too. A table
holds what these commands give: each row goes through the pipeline's own code, without DVC and MLflow, in a
temporary folder.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

from docs.lessons.check import LESSONS, facts, judged, lessons
from minilm import CharTokenizer, MiniGPT, ModelConfig, checkpoint, train
from minilm.data.batches import open_tokens
from minilm.data.provenance import Source
from minilm.device import choose_device, choose_precision, describe_environment
from minilm.params import (
    Params,
    TrainParams,
    experiment_command,
    load_params,
    load_recipe,
    text_of,
)
from minilm.training.reports import write_reports
from stages import download, encode, evaluate, sample

ROOT = LESSONS.parents[1]
START = {"dataset": "minilm/data/sample_text"} | load_recipe(ROOT / "recipes/lesson.yaml")
SHOWN = 100  # characters of a sample in a table


def main() -> None:
    """Run the lessons that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, metavar="LESSON")
    parser.add_argument(
        "--steps", help="of each training, to try out everything; leaves the tables as they are"
    )
    arguments = parser.parse_args()
    for number in arguments.numbers or lessons():
        results = run(number, arguments.steps)
        print(table := markdown_table(lessons()[number]["columns"], results))
        path = document(number)
        if not arguments.steps:
            path.write_text(with_block(written(number), "table", table), encoding="utf-8")


def run(number: int, steps: str | None = None) -> dict[str, dict[str, Any]]:
    """Run a lesson's rows and the solution of its exercise; returns the facts of each row."""
    lesson, results, last = lessons()[number], {}, None
    exercise = lesson["exercise"]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("minilm").symlink_to(ROOT / "minilm")  # the sample text is where it is in the project
        for command in lesson.get("prepare", []) + exercise.get("prepare", []):
            subprocess.run(command, shell=True, check=True)
        for name, overrides in (lesson["rows"] | {"solution": exercise["solution"]}).items():
            params = row_params(overrides | ({"steps": steps, "warmup_steps": "0"} if steps else {}))
            run_pipeline(params, last)
            results[name], last = facts(Path()), params
    said = judged(exercise["wanted"], results.pop("solution"))
    if not (steps or all(said.values())):
        sys.exit(f"lesson {number}: the solution of its exercise is none: {said}")
    return results


def row_params(overrides: dict[str, str]) -> Params:
    """A row's parameters: params.yaml, changed by the recipe `lesson`, changed by the row."""
    return load_params(ROOT / "params.yaml", START | overrides)


def run_pipeline(params: Params, last: Params | None) -> None:
    """What `dvc repro` does in the current folder, but for the report; an equal training is not repeated."""
    values = {key: value for part in params for key, value in part}
    Path("params.yaml").write_text("".join(f"{key}: {text_of(value)}\n" for key, value in values.items()))
    if last is None or params[:4] != last[:4]:
        download.main()
        encode.main()
        train_model(params.train)
        evaluate.main()
    sample.main()


def train_model(params: TrainParams) -> None:
    """The train stage without MLflow, checkpoints, film and several processes."""
    tokenizer = CharTokenizer.load(encode.ENCODED / "tokenizer.json")
    train_tokens, val_tokens = (
        open_tokens(encode.ENCODED / f"{split}.npy") for split in ("train", "validation")
    )
    model = MiniGPT(ModelConfig.from_params(tokenizer.vocab_size, params), seed=params.seed)
    device = choose_device("cpu")
    reports = train(model, train_tokens, val_tokens, params)
    environment = describe_environment(device, choose_precision(params.precision, device), processes=1)
    source = Source.load(download.RAW / "source.json")
    checkpoint.save(evaluate.MODEL, model, tokenizer, params.model_dump(), source, environment)
    write_reports(evaluate.REPORTS, reports, params.keep, model.num_parameters)


def document(number: int) -> Path:
    """The lesson's file."""
    return next(LESSONS.glob(f"{number:02}-*.md"))


def written(number: int) -> str:
    """The lesson's text, with what experiments.yaml says before any run: commands, conditions."""
    lesson, text = lessons()[number], document(number).read_text(encoding="utf-8")
    exercise, rows = lesson["exercise"], list(lesson["rows"].values())
    flags = {"recipe": "lesson", "dataset": START["dataset"]} | rows[0]
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    shown = [*lesson.get("prepare", []), shlex.join(["python", "main.py", "--train", *words])]
    shown += [next_command(*pair) for pair in pairwise(rows)]
    solution = [*exercise.get("prepare", []), next_command(rows[-1], exercise["solution"])]
    text = with_block(text, "commands", "".join(f"    {command}\n" for command in shown))
    text = with_block(text, "solution", "".join(f"    {command}\n" for command in solution))
    wanted = "".join(f"- `{name}` {condition}\n" for name, condition in exercise["wanted"].items())
    return with_block(text, "wanted", wanted)


def next_command(before: dict[str, str], overrides: dict[str, str]) -> str:
    """What runs the experiment with these overrides, where params.yaml still has those before."""
    old, new = (
        {key: value for part in row_params(row) for key, value in part} for row in (before, overrides)
    )
    return experiment_command(new, old)


def with_block(text: str, name: str, content: str) -> str:
    """The Markdown with other content between its lines `<!-- name -->` and `<!-- end -->`."""
    pattern = rf"(?s)(<!-- {name} -->\n\n).*?(\n<!-- end -->)"
    text, count = re.subn(pattern, lambda found: found[1] + content + found[2], text)
    assert count == 1, name
    return text


def markdown_table(columns: list[str], results: dict[str, dict[str, Any]]) -> str:
    """The facts named by `columns`, a line for each row."""
    lines = [["", *(f"`{name}`" for name in columns)], ["---"] * (len(columns) + 1)]
    lines += [[row, *(shown(found[name]) for name in columns)] for row, found in results.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def shown(value: int | float | str) -> str:
    """A fact in a table's cell; of a text its beginning."""
    if isinstance(value, str):
        return " ".join(value.split())[:SHOWN].replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


if __name__ == "__main__":
    main()
