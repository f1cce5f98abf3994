"""What a stage, its spool and others that deliver do to each other when something is wrong."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from book import SOURCE, Book

from minilm import tracking
from minilm.deliver import deliver_all
from minilm.delivery import Delivery
from minilm.spool import pages, spool_of


@pytest.fixture
def book(tmp_path, empty_store, tiny_model, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Book(tmp_path / "my project", empty_store, tiny_model, monkeypatch)


def test_full_disk_stops_no_training(book, capsys):
    training = tracking.new_run(book.root, SOURCE, "some training", anew=False)
    with book.written(training) as notebook, Path("/dev/full").open("a") as full:
        page, entries = notebook.page, notebook.page._entries
        page._entries = full
        notebook.log_metrics({"train_loss": 3.0}, 1)
        notebook.log_metrics({"train_loss": 2.0}, 2)
        assert "WARNING: MLflow: nothing more is recorded: [Errno 28]" in capsys.readouterr().err
        notebook.page, page._entries = page, entries  # for the end of the block
    assert len(pages(book.root)) == 1


def test_entry_that_cannot_be_made_is_left_out(book, capsys):
    (book.root / "dvc.lock").write_text("stages: {evaluate: {deps: [{}]}}")
    with book.written(tracking.new_run(book.root, SOURCE, "some training", anew=False)) as notebook:
        notebook.log_standing_results(book.model)
        notebook.log_metrics({"train_loss": 3.0}, 1)
    assert "WARNING: MLflow: not all is recorded" in capsys.readouterr().err
    assert deliver_all(book.root) == ({}, [])
    (row,) = book.rows()
    assert (row.info.status, row.data.metrics) == ("FINISHED", {"train_loss": 3.0})


def test_proxy_that_answers_for_a_server_that_is_down_refuses_nothing(book):
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def do_POST(self):
            self.send_error(404)

        def log_message(self, *arguments):
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        book.patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_port}")
        page = book.trained()
        refused, failed = deliver_all(book.root)
        proxy.shutdown()
    assert not refused
    assert len(failed) == 1
    assert pages(book.root) == [page]


def test_row_of_a_refused_page_does_not_stay_running(book):
    with book.written(tracking.new_run(book.root, SOURCE, "some training", anew=False)) as notebook:
        notebook.log_metrics({"a metric with a forbidden name!": 1.0}, 1)
    refused, failed = deliver_all(book.root)
    assert [list(refused), failed] == [[notebook.page.folder], []]
    assert "a metric with a forbidden name!" in refused[notebook.page.folder]
    (row,) = book.rows()
    assert row.info.status == "FAILED"


def test_page_that_lacks_a_file_holds_up_no_other(book):
    damaged = book.trained()
    (kept,) = damaged.glob("files/*/loss.csv")
    kept.unlink()
    book.evaluated()
    refused, failed = deliver_all(book.root)
    assert not refused
    assert len(failed) == 1
    assert pages(book.root) == [damaged]
    (row,) = book.rows()
    assert "test_loss" in row.data.metrics


def test_another_clone_at_the_same_training_has_its_own_row(book):
    for _ in range(2):
        training = tracking.new_run(book.root, SOURCE, "some training", anew=False)
        with book.written(training) as notebook:
            notebook.log_metrics({"train_loss": 3.0}, 1)
            Delivery(book.root, notebook.page.folder).advance()
        (spool_of(book.root) / "id").unlink()  # from here on as another clone
    assert len(book.rows()) == 2


def test_what_another_process_has_gone_on_with_is_taken_from_there(book):
    book.trained()
    deliver_all(book.root)
    with book.written(tracking.new_run(book.root, SOURCE, "some training", anew=True)) as notebook:
        early = Delivery(book.root, notebook.page.folder)
        early.advance()
        assert len(book.rows()) == 2
        notebook.log_params({"steps": 4})
        notebook.log_model(book.model)
    # The other one finds out that the model has a row, and removes the one that `early` knows.
    Delivery(book.root, notebook.page.folder).advance()
    early.finish()
    (row,) = book.rows()
    assert row.info.status == "FINISHED"
    assert not pages(book.root)
