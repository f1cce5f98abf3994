"""Where the MLflow store is, and when it is not opened."""

import socket
import time

import pytest

from minilm.errors import UserError
from minilm.tracking.store import EXPERIMENT, MlflowClient, open_store


def test_a_server_that_accepts_and_is_silent_is_given_up_within_a_second(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            open_store(tmp_path)
        assert time.monotonic() - began < 1


def test_a_moved_store_is_read_but_not_written_to(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    _, experiment = open_store(tmp_path / "before")
    (tmp_path / "before" / "mlflow.db").rename(tmp_path / "after" / "mlflow.db")
    assert open_store(tmp_path / "after", create=False)[1] == experiment
    with pytest.raises(UserError, match=r"before/mlruns: the project was moved or copied; "):
        open_store(tmp_path / "after")


def test_artifacts_may_be_where_the_user_wants_them(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment(EXPERIMENT, artifact_location=f"file://{tmp_path}/large disk")
    assert open_store(tmp_path)[1] == experiment
