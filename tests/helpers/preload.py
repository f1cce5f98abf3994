"""A `python` that starts in a tenth of a second with the large libraries imported, for the tests' processes.

A server has imported them, and forks itself for each program; this project's own code is never preloaded.
`python` is a launcher that hands over its arguments, folder, environment and streams, passes on SIGTERM and
SIGINT, and ends as the program does. If the launcher is killed, so is the program, a moment later.

With SHORT_TRAININGS in its environment every training is that of a few steps of a small model.

It has the server's number of threads and its memory. What depends on these, on how a fresh interpreter starts
or on other signals is tested with `sys.executable`.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

# Not datasets and huggingface_hub: they read the environment when they are imported.
LIBRARIES = """
numpy torch torch._dynamo torch.nn.parallel torch.distributed.checkpoint.state_dict safetensors.torch tabulate
yaml ruamel.yaml pydantic filelock psutil requests tqdm jinja2 pandas pyarrow networkx matplotlib.pyplot
matplotlib.backends.backend_agg mlflow mlflow.pyfunc mlflow.data mlflow.store.tracking.sqlalchemy_store
dulwich.worktree dvc.cli.parser dvc.analytics dvc.api dvc.cachemgr dvc.compare dvc.data_cloud dvc.repo.graph
dvc.repo.experiments.queue.celery dvc.repo.experiments.executor.local dvc.repo.index dvc.repo.open_repo
dvc.repo.plots dvc.repo.stage dvc.utils.strictyaml dvc_data.hashfile.db.local dvc_data.hashfile.status
"""
LAUNCHER = """
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n"
socket.send_fds(server, [request[:1]], [0, 1, 2])
server.sendall(request[1:])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
status = int(server.makefile().readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextmanager
def preloaded_python(folder: Path, env: dict[str, str]):
    """While the block runs, what it yields is such a `python`, preloaded in the environment `env`."""
    if sys.platform != "linux":  # elsewhere the libraries may not survive a fork
        yield Path(sys.executable)
        return
    python, launcher, address = folder / "python", folder / "launcher.py", folder / "socket"
    launcher.write_text(LAUNCHER.format(address=str(address)))
    # Through a shell, since an interpreter's path in the first line must hold no space.
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{launcher}" "$0" "$@"\n')
    python.chmod(0o755)
    command = [sys.executable, "-P", __file__, str(address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as server:
        assert server.stdout.readline() == b"ready\n"
        yield python  # after which its stdin is closed, and it ends


def serve(address: str) -> list[str]:
    """Fork for each launcher that connects; returns, in the fork of a fork, the program's arguments."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                return attend(connection)
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    os._exit(0)


def attend(connection: socket.socket) -> list[str]:
    """Fork the program, in which this returns; the parent stands between it and its launcher."""
    first, streams, _, _ = socket.recv_fds(connection, 1, 3)
    launcher = connection.makefile("rb")
    arguments, folder, environment = json.loads(first + launcher.readline())
    program = os.fork()
    if not program:
        connection.close()
        launcher.close()
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return arguments

    def pass_on_signals() -> None:
        with suppress(ProcessLookupError):
            while number := launcher.read(1):
                os.kill(program, number[0])
            os.kill(program, signal.SIGKILL)  # the launcher is gone

    for stream in streams:
        os.close(stream)
    threading.Thread(target=pass_on_signals, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % status)
    os._exit(0)


def run(python: str, *arguments: str) -> None:
    """Do what `python ARGUMENTS` does."""
    unbuffered = arguments[0] == "-u"
    kind, *rest = arguments[unbuffered:]
    sys.executable = python
    sys.stdout.reconfigure(line_buffering=unbuffered or sys.stdout.isatty())
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path.insert(0, str(Path.cwd()) if kind in ("-m", "-c") else str(Path(kind).resolve().parent))
    sys.argv = [kind, *rest] if kind != "-m" else rest
    if "SHORT_TRAININGS" in os.environ and rest and rest[0].startswith(("stages.", "benchmarks.", "docs.")):
        shorten_trainings()
    if kind == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")


def shorten_trainings() -> None:
    """Make what reads the parameters of a training see few steps, a small model and small batches."""
    params = importlib.import_module("minilm.params")
    load = params.load_params

    def load_short(*arguments):
        loaded = load(*arguments)
        short = {"num_layers": 1, "batch_size": 16, "warmup_steps": 0, "eval_batches": 1, "compile": False}
        short |= {"steps": min(2, loaded.train.steps), "embed_dim": 2 * loaded.train.num_heads}
        return loaded._replace(train=loaded.train.model_copy(update=short))

    params.load_params = load_short


def end() -> None:
    """End here: before it ended, the interpreter would take the libraries apart, for a third of a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    status = 1  # unless something else is known, that of an exception
    atexit.register(end)  # first, so that it runs after all other exit handlers
    for name in LIBRARIES.split():
        importlib.import_module(name)
    gc.freeze()
    try:
        run(*serve(sys.argv[1]))
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
