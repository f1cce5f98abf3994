"""Pages of the spool reach the store whole and once, whatever goes wrong on their way."""

import inspect
import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from book import Book
from minilm.tracking.store import MlflowClient

from minilm import tracking
from minilm.checkpoint import CONFIG, WEIGHTS
from minilm.deliver import deliver_all
from minilm.delivery import Delivery
from minilm.files import sha256_of
from minilm.spool import ENTRIES, Page, pages, spool_of


@pytest.fixture
def book(tmp_path, empty_store, tiny_model, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Book(tmp_path / "my project", empty_store, tiny_model, monkeypatch)


class LostError(Exception):
    """The connection was."""


def lose(client: MlflowClient, number: int, answer: bool) -> None:
    """Let the client's call of that number fail: the request does not arrive, or its answer gets lost."""
    calls = itertools.count(1)

    def failing(method):
        def call(*arguments, **options):
            if next(calls) != number:
                return method(*arguments, **options)
            if answer:
                method(*arguments, **options)
            raise LostError

        return call

    for name, method in inspect.getmembers(client, inspect.ismethod):
        if not name.startswith("_"):
            setattr(client, name, failing(method))


def renamed(book, template: Path, name: int) -> Path:
    """The page once more, as if it were of another model and training."""
    folder = spool_of(book.root) / f"{template.name}-{name}"
    shutil.copytree(template, folder)
    text = (folder / ENTRIES).read_text()
    for old in (sha256_of(book.model / WEIGHTS), sha256_of(book.model / CONFIG), "some training"):
        text = text.replace(old, f"{old} {name}")
    (folder / ENTRIES).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("told", "lost", "retried"),
    [
        (("train",), "request", "by another process"),
        (("train",), "answer", "by another process"),
        (("evaluate",), "answer", "by another process"),
        (("evaluate", "train"), "request", "by the same process"),
        (("evaluate", "train"), "answer", "by another process"),
    ],
)
def test_whichever_call_fails_the_row_is_the_same(book, told, lost, retried):
    """The last of the pages is the one that fails; a train after evaluate becomes part of its row."""
    written = {"train": book.trained(), "evaluate": book.evaluated()}
    templates = [written[stage].rename(book.root / written[stage].name) for stage in told]

    def outcome(number: int) -> tuple[bool, list[dict]]:
        """Whether the call of that number failed, and the rows that came of it."""
        before = {row.info.run_id for row in book.rows()}
        *first, last = [renamed(book, template, number) for template in templates]
        for folder in first:
            Delivery(book.root, folder).finish()
        delivery, failed = Delivery(book.root, last), False
        lose(delivery.client, number, lost == "answer")
        try:
            delivery.finish()
        except LostError:
            failed = True
            if retried == "by another process":
                delivery = Delivery(book.root, last)
            delivery.finish()
        assert not last.exists()
        return failed, [book.content(row) for row in book.rows() if row.info.run_id not in before]

    failed, expected = outcome(0)
    assert not failed
    assert [row["whole models"] for row in expected] == [1]
    assert ("restored" in expected[0]["tags"]) == ("train" not in told)
    for number in itertools.count(1):
        failed, rows = outcome(number)
        assert rows == expected, f"call {number}"
        if not failed:
            break
    assert number > 10


# Writes three pages and then waits: a training's, one with nothing and one with half an entry.
WRITER = """
import sys
from pathlib import Path
from minilm.spool import Page, store_uri
root = Path(sys.argv[1])
training, empty, torn = [Page(root, "train") for _ in range(3)]
about = dict(store=store_uri(root), name="x", tags={}, training="x", anew=False)
data = dict(dataset="x", origin="x", characters={}, sha256="ab" * 32)
training.write("row", **about, data=data)
training.write("points", metrics={"train_loss": 2.5}, step=1)
for page in training, torn:
    page._entries.write('{"kind": "points", "metr')
    page._entries.flush()
print("written", flush=True)
sys.stdin.read()
"""


def test_page_of_a_killed_process(book):
    root = Path(tracking.__file__).parent.parent
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", WRITER, str(book.root)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(root)}, **pipes) as writer:
        assert writer.stdout.readline() == b"written\n"
        deliver_all(book.root)
        assert len(pages(book.root)) == 3  # they are not closed
        assert not book.rows()
        writer.kill()
    assert deliver_all(book.root) == ({}, [])
    assert not list(spool_of(book.root).glob("*-train-*"))
    (row,) = book.rows()
    assert row.info.status == "KILLED"
    ((step, value, time),) = book.curve(row, "train_loss")
    assert (step, value) == (1, 2.5)
    assert row.info.end_time == time


def test_entry_that_is_half_written_is_left_for_later(book):
    template = book.trained()
    lines = (template / ENTRIES).read_text().splitlines(keepends=True)
    page = Page(book.root, "train")
    shutil.rmtree(page.folder / "files", ignore_errors=True)
    shutil.copytree(template / "files", page.folder / "files")
    shutil.rmtree(template)
    first_point = next(i for i, line in enumerate(lines) if '"points"' in line)
    whole, half = "".join(lines[:first_point]), lines[first_point][:40]
    with (page.folder / ENTRIES).open("a") as file:
        file.write(whole + half)
        file.flush()
        delivery = Delivery(book.root, page.folder)
        delivery.advance()
        (row,) = book.rows()
        assert row.data.params["learning_rate"] == "0.01"
        assert not row.data.metrics
        file.write("".join(lines)[len(whole + half) :])
    page.close()
    delivery.finish()
    (row,) = book.rows()
    assert [point[:2] for point in book.curve(row, "val_loss")] == [(1, 4.0), (2, 2.0)]
    assert row.info.status == "FINISHED"


def deliver_command() -> subprocess.Popen:
    root = Path(tracking.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-m", "minilm.deliver"],
        env=os.environ | {"PYTHONPATH": str(root)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_page_that_is_refused_for_good_holds_up_no_other(book):
    refused = book.trained()
    delivery = Delivery(book.root, refused)
    lose(delivery.client, 12, answer=False)
    with pytest.raises(LostError):
        delivery.finish()
    (row,) = book.rows()
    book.client.delete_run(row.info.run_id)  # as its user may do
    book.evaluated()
    command = deliver_command()
    printed = command.communicate(timeout=60)[0]
    aside = refused.with_name(f"refused-{refused.name}")
    assert command.returncode == 1
    assert "error: MLflow refused a page" in printed
    assert str(aside) in printed
    assert "1 of 2 pages delivered" in printed
    assert (aside / ENTRIES).exists()
    assert not pages(book.root)
    (row,) = book.rows()
    assert "restored" in row.data.tags


def test_long_prompt_empty_stop_and_figures_that_are_none(book):
    settings = {"prompt": "x" * 10_000, "stop": ""}
    metrics = {"test_loss": math.nan, "test_perplexity": math.inf, "ngram_loss": 1.5}
    for _ in range(2):  # the second time nothing is new
        book.evaluated(settings, metrics)
        assert deliver_all(book.root) == ({}, [])
        assert not pages(book.root)
        assert not list(spool_of(book.root).glob("refused-*"))
    (row,) = book.rows()
    assert row.data.params["stop"] == ""
    assert set(row.data.params["prompt"]) == {"x"}
    assert not [key for key in row.data.tags if key.startswith("latest.")]
    curves = {key: book.curve(row, key) for key in metrics}
    assert [len(points) for points in curves.values()] == [1, 1, 1]
    assert math.isnan(curves["test_loss"][0][1])
    assert curves["test_perplexity"][0][1] > 1e300  # SQL's stores have no infinity
    assert curves["ngram_loss"][0][1] == 1.5
    (kept,) = book.client.list_artifacts(row.info.run_id, "history")
    copy = book.client.download_artifacts(row.info.run_id, f"{kept.path}/settings.json")
    assert "x" * 10_000 in Path(copy).read_text()


def test_two_deliveries_at_once(book):
    for loss in range(1, 6):
        book.evaluated(metrics={"test_loss": float(loss)})
    commands = [deliver_command() for _ in range(2)]
    printed = [command.communicate(timeout=60)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], printed
    assert not pages(book.root)
    assert not list(spool_of(book.root).glob("*-evaluate-*"))
    (row,) = book.rows()
    assert book.content(row)["whole models"] == 1
    assert [point[:2] for point in book.curve(row, "test_loss")] == [(n, float(n + 1)) for n in range(5)]
