"""The tests' preloaded `python` does what the interpreter does (helpers/preload.py)."""

import os
import signal
import subprocess
import sys

import pytest

from conftest import REAL_PATH

PROGRAM = """
import os, sys
print(__name__, os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), os.environ["KEY"], sys.stdin.read())
sys.exit({status})
"""


@pytest.mark.parametrize(
    ("how", "status"),
    [
        (["program.py"], "0"),
        (["-c"], "3"),
        (["-m", "program"], "None"),
        (["-m", "program"], "'a message'"),
        (["-u", "-m", "program"], "1 / 0"),
        (["-m", "program"], "os.abort()"),
    ],
)
def test_a_program_runs_as_by_a_fresh_interpreter(tmp_path, python, how, status):
    program = PROGRAM.format(status=status)
    (tmp_path / "program.py").write_text(program)
    arguments = [*how, *([program] if how == ["-c"] else []), "some", "arguments"]
    preloaded, fresh = (
        subprocess.run(
            [executable, *arguments],
            input="what it reads",
            cwd=tmp_path,
            env=os.environ | {"KEY": "value"},
            capture_output=True,
            text=True,
        )
        for executable in (python, sys.executable)
    )
    assert (preloaded.returncode, preloaded.stdout) == (fresh.returncode, fresh.stdout)
    assert preloaded.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_program_and_its_end_is_the_launchers(python, number):
    code = "import time; print('ready'); time.sleep(60)"
    with subprocess.Popen(
        [python, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as launcher:
        assert launcher.stdout.readline() == b"ready\n"
        launcher.send_signal(number)
        assert launcher.stdout.read() == b""  # which ends with the program
        assert b"KeyboardInterrupt" in launcher.stderr.read() or number != signal.SIGINT
    assert launcher.returncode == -number or (number, launcher.returncode) == (signal.SIGINT, 1)


def test_a_first_pipeline_run_by_fresh_interpreters_gives_the_same_bytes(make_project, first_run):
    project = make_project()
    project.dvc("repro", PATH=REAL_PATH)
    # It holds the digests of all that the stages wrote.
    assert project.read("dvc.lock") == (first_run.folder.with_name("first run") / "dvc.lock").read_text()
