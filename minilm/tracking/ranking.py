"""The best models of the lab notebook, by what they reached on the test text.

python -m minilm.best             the ten best on the text that was trained on last
python -m minilm.best --top 50    more of them
python -m minilm.best --data ddd478d3    on the text whose SHA-256 begins so
"""

import argparse
import math
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.archive import Archive, of_row
from minilm.errors import InputError
from minilm.pages import experiment_command
from minilm.params import FIELDS, SampleParams, load_params
from minilm.rows import experiments_of, settings, text_of_setting
from minilm.versions import Version

if TYPE_CHECKING:
    from mlflow.entities import Run

METRIC, WIDTH = "test_bits_per_char", 100
# What cannot change the figure: how samples are written, and where and how often states are saved.
_NO_MATTER = {*SampleParams.model_fields, "launcher", "checkpoint_interval"}


@dataclass(frozen=True)
class Ranked:
    """A model in the ranking.

    Attributes:
        row: the notebook's.
        bits: a character of the test text.
        params: by their names in params.yaml.
        names: of the DVC experiments that made it, those that are still here first.
        version: that brings it back; None if no experiment and no commit has it.
    """

    row: "Run"
    bits: float
    params: dict[str, Any]
    names: list[str]
    version: Version | None

    @property
    def name(self) -> str:
        """The experiment's or, without one, the row's in MLflow."""
        return self.names[0] if self.names else str(self.row.info.run_name)


@dataclass(frozen=True)
class Ranking:
    """Models that can be compared, since they were tested on one text.

    Attributes:
        models: the best first, one for each trained model.
        text: SHA-256 of the text.
        differing: the parameters in which they differ and which matter to the figure.
        left_out: how many rows are not ranked, by the reason.
    """

    models: list[Ranked]
    text: str
    differing: list[str]
    left_out: Counter[str]


def main() -> None:
    """Read the command line and print the ranking."""
    parser = argparse.ArgumentParser(
        prog="python -m minilm.best",
        description=f"Rank the lab notebook's models by {METRIC}, the lowest first, and find the best.",
        epilog="The notebook is $MLFLOW_TRACKING_URI or mlflow.db in $DVC_ROOT or the current folder.",
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many to print (default 10)")
    parser.add_argument(
        "--data",
        default="",
        metavar="SHA",
        help="beginning of the SHA-256 of the text; without it the text of the newest row",
    )
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error("--top must be at least 1")
    try:
        root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
        ranking = rank(root, arguments.data)
        now = {key: value for part in load_params(root / "params.yaml") for key, value in part}
        print(table(ranking, arguments.top), about_the_best(ranking, now), sep="\n\n")
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def rank(root: Path, data: str = "") -> Ranking:
    """Rank the finished rows that have been tested on one text.

    Args:
        root: the project's main folder.
        data: beginning of the text's SHA-256; empty for the text of the newest such row.

    Raises:
        InputError: there is no notebook, nothing to rank, or no or several such texts.
    """
    archive = Archive(root)
    if archive.rows is None:
        raise InputError(f"nothing to rank: {archive.no_rows}; `dvc repro` or `dvc exp run` makes a model")
    left_out: Counter[str] = Counter()
    tested = []
    for row in archive.rows.all():
        if row.info.status != "FINISHED":
            left_out[row.info.status] += 1
        elif not math.isfinite(row.data.metrics.get(METRIC, math.nan)):
            left_out[f"without {METRIC}"] += 1
        else:
            tested.append(row)
    if not tested:
        raise InputError(
            "; ".join(
                [f"nothing to rank: no finished row of {archive.rows.store} has {METRIC}", *_counts(left_out)]
            )
        )
    text = _choose_text(tested, data)
    on_text = [row for row in tested if _text(row) == text]
    left_out["of other data"] = len(tested) - len(on_text)
    models = sorted(_one_a_model(on_text), key=lambda row: row.data.metrics[METRIC])
    left_out["of a model that another row is of"] = len(on_text) - len(models)
    ranked = [_ranked(archive, row) for row in models]
    differing = [
        key
        for key in FIELDS
        if key not in _NO_MATTER and len({str(model.params.get(key)) for model in ranked}) > 1
    ]
    return Ranking(ranked, text, differing, left_out)


def table(ranking: Ranking, top: int) -> str:
    """The ranking as a table, with the differing parameters that its width takes, and notes."""
    models = ranking.models[:top]
    marks = {model.row.info.run_id: _mark(ranking, model) for model in ranking.models}
    marked = any(marks.values())
    columns = {
        "rank": [f"{number}" for number in range(1, len(models) + 1)],
        "bits/char": [f"{model.bits:.4f}" + marks[model.row.info.run_id].ljust(marked) for model in models],
        "name": [model.name for model in models],
    }
    shown = 0
    for key in ranking.differing:
        wider = columns | {key: [_cell(model, key) for model in models]}
        if sum(_widths(wider).values()) + 2 * len(columns) > WIDTH:
            break
        columns, shown = wider, shown + 1
    widths = _widths(columns)
    lines = [
        "  ".join(
            cell.ljust(widths[title]) if title == "name" else cell.rjust(widths[title])
            for title, cell in zip(columns, line, strict=True)
        ).rstrip()
        for line in [tuple(columns), *zip(*columns.values(), strict=True)]
    ]
    lines += ["", f"{len(models)} of {len(ranking.models)} models on the text {ranking.text[:12]}"]
    if hidden := ranking.differing[shown:]:
        lines.append(f"They differ in {', '.join(hidden)} too.")
    if marked:
        lines.append("* tested with another eval_context than the best, so not strictly comparable")
    return "\n".join(lines + _counts(ranking.left_out))


def about_the_best(ranking: Ranking, now: dict[str, Any]) -> str:
    """What the best is and the command that brings it back.

    Args:
        ranking: with the best first.
        now: what params.yaml holds.
    """
    best = ranking.models[0]
    lines = [f"The best is {best.name}, {best.bits:.4f} bits a character."]
    if ranking.differing:
        settings = ", ".join(f"{key}={text_of_setting(best.params.get(key))}" for key in ranking.differing)
        lines.append(textwrap.fill(f"with {settings}", WIDTH, initial_indent="  ", subsequent_indent="    "))
    lines += [f"  MLflow run {best.row.info.run_id}"]
    if best.version:
        return "\n".join([*lines, "", "To bring it back:", f"  {best.version.command}"])
    commit = best.row.data.tags.get("git_commit", "an unknown commit")[:12]
    return "\n".join(
        [
            *lines,
            "",
            "No experiment and no commit here has its files. To train it again, on the data that it had and "
            f"with the code of {commit}:",
            f"  {experiment_command({key: best.params[key] for key in best.params if key in now}, now)}",
        ]
    )


def _ranked(archive: Archive, row: "Run") -> Ranked:
    noted = experiments_of(row)
    versions = archive.versions_of(of_row(row))
    versions.sort(key=lambda version: (version.experiment is None, version.experiment not in noted))
    names = dict.fromkeys([*(version.experiment for version in versions if version.experiment), *noted])
    best = versions[0] if versions else None
    return Ranked(row, row.data.metrics[METRIC], settings(row), list(names), best)


def _one_a_model(rows: "list[Run]") -> "Iterator[Run]":
    """Of several rows of the same model the first."""
    seen = set()
    for row in rows:
        model = row.data.tags.get("model_sha256", row.info.run_id)
        if model not in seen:
            seen.add(model)
            yield row


def _choose_text(rows: "list[Run]", start: str) -> str:
    texts = list(dict.fromkeys(_text(row) for row in rows))
    chosen = [text for text in texts if text.startswith(start)]
    if not chosen or (start and len(chosen) > 1):
        listed = ", ".join(text[:12] for text in texts)
        raise InputError(
            f"--data {start}: {'several texts begin' if chosen else 'no text begins'} so; there are {listed}"
        )
    return chosen[0]


def _text(row: "Run") -> str:
    return row.data.tags.get("data_sha256", "unknown")


def _mark(ranking: Ranking, model: Ranked) -> str:
    return "" if _context(model) == _context(ranking.models[0]) else "*"


def _context(model: Ranked) -> Any:
    """The setting; `auto` also for the number that auto stands for."""
    context, block = model.params.get("eval_context"), model.params.get("block_size", 0)
    return "auto" if context == block // 2 else context  # as minilm.evaluation understands it


def _cell(model: Ranked, key: str) -> str:
    return textwrap.shorten(text_of_setting(model.params.get(key, "")), 24, placeholder="...")


def _widths(columns: dict[str, list[str]]) -> dict[str, int]:
    return {title: max(map(len, [title, *cells])) for title, cells in columns.items()}


def _counts(left_out: Counter[str]) -> list[str]:
    counts = [f"{count} {reason}" for reason, count in left_out.items() if count]
    return [f"Rows not ranked: {', '.join(counts)}"] if counts else []


if __name__ == "__main__":
    main()
