"""The lessons show what experiments.yaml says, their numbers are the pipeline's, and exercises are judged."""

import re
import subprocess
import xml.etree.ElementTree as ET

import pytest

from conftest import ROOT, TINY
from docs.lessons import check
from docs.lessons.run import START, document, plot, row_params, run_pipeline, written
from minilm.params import load_params

LESSONS = check.lessons()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project's folder without data, models and reports."""
    monkeypatch.chdir(tmp_path)
    for name in ("minilm", "stages", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def checked(number, monkeypatch, capsys) -> tuple[str, object]:
    """What the check of a lesson prints in the current folder, and its exit status."""
    monkeypatch.setattr("sys.argv", ["check", str(number)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        check.main()
    return capsys.readouterr().out, ended.value.code


def table(number) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the table's columns, and the cells of each row."""
    lines = [line[2:-2] for line in document(number).read_text().splitlines() if line[:2] == "| "]
    (_, *columns), _, *rows = (line.split(" | ") for line in lines)
    return [name.strip("`") for name in columns], {row: cells for row, *cells in rows}


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_shows_the_commands_rows_and_conditions_of_experiments_yaml(number):
    text, (columns, rows) = document(number).read_text(), table(number)
    assert written(number) == text, "run: make lessons"
    assert columns == LESSONS[number]["columns"]
    assert list(rows) == list(LESSONS[number]["rows"])
    assert f"python -m docs.lessons.check {number}\n" in text
    assert f"](img/{plot(number).name})\n" in text


@pytest.mark.parametrize("number", LESSONS)
def test_the_plot_has_the_rows_of_the_table_and_the_bars_its_values(number):
    columns, rows = table(number)
    drawn = {element.text for element in ET.parse(plot(number)).iter()}
    assert drawn >= {row.replace("`", "") for row in rows}
    for fact in LESSONS[number].get("bars", []):
        assert drawn >= {fact, *(cells[columns.index(fact)] for cells in rows.values())}
    assert plot(number).stat().st_size < 40_000


def test_the_index_names_every_lesson():
    index = (check.LESSONS / "index.md").read_text()
    assert len(LESSONS) == 12
    assert all(f"({document(number).name})" in index for number in LESSONS)


def test_the_panels_and_files_that_the_lessons_name_are_there():
    sources = [*(ROOT / "minilm/report/explorer").rglob("*.js"), *ROOT.glob("minilm/report/explorer/*.html")]
    explorer, outs = "".join(path.read_text() for path in sources), (ROOT / "dvc.yaml").read_text()
    text = "".join(document(number).read_text() for number in LESSONS)
    panels = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", text))
    assert len(panels) >= 8
    assert [name for name in panels if name not in explorer] == []
    assert [name for name in re.findall(r"reports/\w+\.\w+", text) if name not in outs] == []


def examples(condition: str):
    """A value that meets a condition, and one that does not."""
    symbol, limit = condition.split()
    if symbol == "!=":
        return f"{limit}s", limit
    if limit == "ngram_loss":
        limit = "2.0"
    if not limit[0].isdigit():
        return limit, f"{limit}s"
    number = float(limit) if "." in limit else int(limit)
    return number, number + (-1 if symbol == ">=" else 1)


@pytest.mark.parametrize("number", LESSONS)
def test_each_condition_of_an_exercise_is_judged(number):
    wanted = LESSONS[number]["exercise"]["wanted"]
    right = {"ngram_loss": 2.0} | {name: examples(condition)[0] for name, condition in wanted.items()}
    assert all(check.judged(wanted, right).values())
    for name, condition in wanted.items():
        said = check.judged(wanted, right | {name: examples(condition)[1]})
        assert [sentence.split()[0] for sentence, met in said.items() if not met] == [name]


def test_check_says_right_or_what_is_missing(folder, monkeypatch, capsys):
    assert checked(1, monkeypatch, capsys)[1].startswith("error: models/minilm: config.json is missing")
    (command,) = LESSONS[1]["exercise"]["prepare"]
    subprocess.run(command, shell=True, check=True)
    quick = {"steps": "1", "num_layers": "1", "eval_batches": "1"}
    run_pipeline(row_params(LESSONS[1]["exercise"]["solution"] | quick), None)
    said, status = checked(1, monkeypatch, capsys)
    assert said.count("yes:") == 4
    assert said.endswith("\nright\n")
    assert status == 0
    said, status = checked(2, monkeypatch, capsys)
    assert "no:   test_loss is " in said
    assert "no:   dataset is coin.txt, wanted: = minilm/data/sample_text" in said
    assert "wanted: <= ngram_loss, which is 0.69" in said
    assert "yes:  num_layers is 1, wanted: = 1" in said
    assert status == 1
    assert "one lesson from 1 to 12" in checked(13, monkeypatch, capsys)[1]


def test_rows_give_the_pipelines_numbers(project, folder):
    run_pipeline(load_params(ROOT / "params.yaml", TINY | {"dataset": START["dataset"]}), None)
    for name in ("metrics.json", "train.json", "loss.csv", "loss_by_position.csv"):
        assert (folder / "reports" / name).read_text() == project.read(f"reports/{name}"), name
    assert check.facts(folder).keys() >= {name for lesson in LESSONS.values() for name in lesson["columns"]}


def test_spelling_counts_words_and_pairs_of_the_text():
    found = check.spelling(["The lamp, the zzz cu"], "A lamp. The lamp is the cut.")
    assert found == {"known_words": 3 / 4, "new_pairs": 1 / 3, "distinct_words": 3 / 4}
    assert check.spelling([""], "a b") == {"known_words": 0, "new_pairs": 0, "distinct_words": 0}
