"""Run the lessons' experiments, write their tables and plots: python -m docs.lessons.run [LESSON ...].

The experiments are in experiments.yaml, and the commands that a lesson shows are made from it too. A table
and its plot hold what these commands give: each row goes through the pipeline's own stages, without DVC and
MLflow, in a temporary folder.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import chdir
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from docs.lessons.check import LESSONS, facts, judged, lessons
from minilm.files import read_table
from minilm.params import Params, experiment_command, load_params, load_recipe, text_of
from minilm.report import plots
from stages import download, encode, evaluate, sample, train

ROOT = LESSONS.parents[1]
START = {"dataset": "minilm/data/sample_text"} | load_recipe(ROOT / "recipes/lesson.yaml")
SHOWN = 100  # characters of a sample in a table
COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, "#cc79a7", "#e69f00", "#56b4e9", "black", plots.GRAY)


def main() -> None:
    """Run the lessons that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, metavar="LESSON")
    parser.add_argument(
        "--steps", help="of each training, to try out everything; leaves tables and plots as they are"
    )
    arguments = parser.parse_args()
    for number in arguments.numbers or lessons():
        results = run(number, arguments.steps)
        print(table := markdown_table(lessons()[number]["columns"], results))
        path = document(number)
        draw(number, results, BytesIO() if arguments.steps else plot(number))
        if not arguments.steps:
            path.write_text(with_block(written(number), "table", table), encoding="utf-8")


def run(number: int, steps: str | None = None) -> dict[str, dict[str, Any]]:
    """Run a lesson's rows and the solution of its exercise; returns the facts and the curves of each row."""
    lesson, results, last = lessons()[number], {}, None
    exercise = lesson["exercise"]
    rows = lesson["rows"] | {"solution": exercise["solution"]}
    prepare = {next(iter(rows)): lesson.get("prepare", []), "solution": exercise.get("prepare", [])}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for name in ("minilm", "stages", "dvc.yaml"):  # the sample text, and what identifies a training
            Path(name).symlink_to(ROOT / name)
        for name, overrides in rows.items():
            for command in prepare.get(name, []):
                subprocess.run(command, shell=True, check=True)
            params = row_params(overrides | ({"steps": steps, "warmup_steps": "0"} if steps else {}))
            run_pipeline(params, last)
            results[name], last = facts(Path()) | {"curves": read_table(Path("reports/loss.csv"))}, params
    said = judged(exercise["wanted"], results.pop("solution"))
    print("the solution:", *said, sep="\n- ")
    if not (steps or all(said.values())):
        sys.exit(f"lesson {number}: that is no solution")
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
        train.main(track=False)
        evaluate.main()
    sample.main()


def document(number: int) -> Path:
    """The lesson's file."""
    return next(LESSONS.glob(f"{number:02}-*.md"))


def plot(number: int) -> Path:
    """The lesson's plot."""
    return LESSONS / "img" / document(number).with_suffix(".svg").name


def draw(number: int, results: dict[str, dict[str, Any]], path: Path | BytesIO) -> None:
    """Draw bars of the facts that the lesson names as `bars`, else each row's `curves` over the steps."""
    lesson, names = lessons()[number], [row.replace("`", "") for row in results]
    text = {"font.family": "sans-serif", "font.size": 11, "svg.fonttype": "none", "svg.hashsalt": ""}
    with style.context(["default", plots.STYLE, text]):
        figure = Figure((8, 3.4), layout="constrained")
        axes = figure.subplots()
        if bars := lesson.get("bars"):
            height, places = 0.85 / len(bars), np.arange(len(results))
            for index, fact in enumerate(bars):
                lengths = [found[fact] for found in results.values()]
                drawn = axes.barh(places + index * height, lengths, height, color=COLORS[index], label=fact)
                axes.bar_label(drawn, fmt="%.3f", padding=3)
            axes.set_yticks(places + (0.85 - height) / 2, names)
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
        else:
            for name, found, color in zip(names, results.values(), COLORS, strict=False):
                curves = found["curves"]
                for losses, line in zip(lesson.get("curves", ["val_loss"]), ("-", ":"), strict=False):
                    label = name if line == "-" else None
                    axes.plot(curves["step"], curves[losses], line, color=color, label=label)
            axes.set(xlabel="step", ylabel="loss (nats per character)")
        figure.legend(loc="outside right upper")
        figure.savefig(path, format="svg", metadata={"Creator": None, "Date": None})


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
