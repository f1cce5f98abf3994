"""The commands of the documents run as they stand there, page by page: `make commands`.

Every indented block of a page runs, in the page's order, in a project whose pipeline has run. A block of
commands is a shell of its own. What the pages name is there, such as a file path/to/book.txt; what else is
different comes from the environment: trainings are short, and pip only says what it would install.
"""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, S3_KEY, copy_of_first_run
from helpers import hub
from test_docs import DOCUMENTS, code_blocks

# Left out are the commands that .ci/run has itself, and:
NOT_RUN = {
    "make bench NANOGPT=path/to/nanoGPT SHAKESPEARE=path/to/input.txt": "takes half an hour and nanoGPT",
}
# Blocks that begin so are what a program prints or a file holds.
SHOWN = (
    "download: text", "kbfjo", "Stage 'download'", "-temperature", "-        temperature", "12+34=46", "{",
    "WARNING", "sync:", "model:", "missing:", "rank",
)  # fmt: skip
# What a page takes for granted.
BEFORE = {
    "CONTRIBUTING": 'git clone --quiet --bare . "$ELSEWHERE/REPOSITORY"',
    "data": "mkdir -p path/to; cp minilm/data/sample_text/train.txt path/to/book.txt",
    "evaluation": """
        dvc exp run --name NAME -S seed=2
        ln -s models/minilm MODEL_FOLDER
        ln -s models/minilm OTHER_FOLDER""",
    "experiments": "cp minilm/data/sample_text/train.txt input.txt",
    "index": "make .venv/installed",
    "README": """
        make .venv/installed
        mkdir -p path/to; cp minilm/data/sample_text/train.txt path/to/book.txt
        cp path/to/book.txt FILE
        dvc exp run --name NAME -S seed=2""",
    "serving": "make champion",
    "sharing": """
        git tag COMMIT
        git clone --quiet --bare . "$ELSEWHERE/REPOSITORY"
        git remote add origin "$ELSEWHERE/REPOSITORY"
        git push --quiet --set-upstream origin HEAD""",
    "theory": "{ echo ROMEO:; cat minilm/data/sample_text/train.txt; } > input.txt",
    "tracking": """
        dvc exp run --name lousy-sorb -S seed=2
        dvc exp run --queue --name NAME -S seed=3""",
    "training": """
        mkdir -p path/to; cp minilm/data/sample_text/train.txt path/to/book.txt
        for i in $(seq 25); do cat path/to/book.txt; done > input.txt  # as long as Tiny Shakespeare""",
}
# What stands on the pages, as a regular expression, and what runs.
OTHERWISE = {
    " && ": "\n",  # after a failure there, bash -e would go on
    "https://s3.example.org": "$S3",
    "s3://BUCKET": "s3://storage",
    "FIRST_HOST": "localhost",
    r"postgresql\+psycopg://USER:PASSWORD@HOST/mlflow": "sqlite:///server.db",
    "b2ab1f98": "$(sha256sum models/minilm/model.safetensors | head -c 8)",
    "cec5113f47a2489b96c950edfbd6d178": (
        "$(python -m minilm.tracking.lineage lousy-sorb | grep -owE '[0-9a-f]{32}')"
    ),
    "--seconds 65": "--seconds 1",
    "git clone": 'cd "$ELSEWHERE"\n\\g<0>',
    "dvc exp push": "dvc exp run --name NAME -S seed=2\n\\g<0>",  # of a commit that has the storage
    # Which short trainings do not solve.
    r"python -m docs.lessons.check \d+": r"\g<0> | grep -E '^(right|not yet)'",
}
# A server runs until its block ends, and the next command as soon as it answers. Two hosts are this one.
SHELL = r"""
set -m  # each job is a process group
trap 'jobs -p | sed s/^/-/ | xargs -r kill --; wait' EXIT
await() { env curl -sf --retry 200 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$1/health"; }
make() { if [ "$*" = ui ]; then env make ui & await "$PORT"; else env make "$@"; fi; }
mlflow() { env mlflow "$@" & await "$(echo "$*" | sed 's/.*port \([0-9]*\).*/\1/')"; }
curl() { env curl --fail-with-body "$@"; }
torchrun() { env torchrun "$@" & env torchrun "$@"; wait $!; }
"""

project = pytest.fixture(copy_of_first_run)


@pytest.fixture(scope="session")
def hub_address(tmp_path_factory):
    """A Hub with the datasets that the pages name."""
    root = tmp_path_factory.mktemp("hub")
    lines = (ROOT / "minilm/data/sample_text/train.txt").read_text().splitlines(keepends=True)
    hub.write_dataset(root, "owner/name", "default", {"train": lines})
    for name in ("wikitext-2", "wikitext-103"):
        hub.write_dataset(root, "Salesforce/wikitext", f"{name}-raw-v1", {"train": lines})
    with hub.serve(root) as address:
        yield address


@pytest.fixture(scope="session")
def programs(tmp_path_factory, python):
    """A folder for the PATH, with a `python3 -m venv` whose environments have what this one has."""
    folder = tmp_path_factory.mktemp("programs")
    pip = Path(sys.executable).with_name("pip")
    for name, script in {
        "python3": f'"{sys.executable}" "$@" ${{3:+--without-pip}}\n'
        f'[ "$1" != -m ] || ln -sf "{python}" "{pip}" "$3/bin"',
        "dvc": 'exec python -m dvc "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh -e\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def add_the_stages(folder: Path, page: str) -> None:
    """Do what docs/pipeline.md asks for: write the files of its two stages, and add them to dvc.yaml."""
    for code, name in re.findall(r'```python\n("""(\w+): .*?)```', page, re.DOTALL):
        (folder / f"stages/{name}.py").write_text(code)
    additions, spelling = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    before = additions[additions.index("  download:") :].replace("      - data/additions.txt\n", "")
    pipeline = (folder / "dvc.yaml").read_text().replace(before, additions)
    (folder / "dvc.yaml").write_text(pipeline.replace("  report:\n", spelling + "  report:\n"))


def run(project, commands: str) -> None:
    # Not through a pipe: DVC's workers would hold it open.
    log = project.folder.with_name("log")
    with log.open("w") as output:
        done = subprocess.run(
            ["bash", "-e", "-c", SHELL + commands],
            cwd=project.folder,
            env=project.env,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
    assert done.returncode == 0, f"{commands}\n{log.read_text()}"
    if "dvc queue start" in commands:
        project.await_queue()


@pytest.mark.parametrize("page", [*filter(code_blocks, DOCUMENTS)], ids=lambda page: page.stem)
def test_the_commands_run_as_they_stand_there(page, project, programs, hub_address, s3, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    project.env = {
        **project.env,
        **S3_KEY,
        "ELSEWHERE": str(tmp_path),
        "HF_ENDPOINT": hub_address,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # starts in a third of the time
        "MLFLOW_WORKERS": "1",
        "PATH": f"{programs}:{project.env['PATH']}",
        "PIP_DRY_RUN": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # for pip, this is --no-build-isolation
        "PIP_QUIET": "1",
        "PORT": str(port),  # of `make ui`
        "PYTEST_ADDOPTS": "--collect-only",
        "S3": s3,
        "SHORT_TRAININGS": "1",
        "STEPS": "2",  # of `make lessons`
    }
    text = page.read_text()
    if page.stem == "pipeline":
        add_the_stages(project.folder, text)
    run(project, BEFORE.get(page.stem, ""))
    python, elsewhere = "", {*(ROOT / ".ci/run").read_text().splitlines(), *NOT_RUN}
    for block in code_blocks(page):
        if block.strip().startswith(("import ", "from ")):
            python += block  # which may use the names of those before it
            project.run("python", "-c", python)
        elif not block.strip().startswith(SHOWN):
            lines = [line for line in block.splitlines() if re.sub(" +# .*", "", line) not in elsewhere]
            commands = "\n".join(lines)
            for there, here in OTHERWISE.items():
                commands = re.sub(there, here, commands)
            run(project, commands)
    if page.stem == "README":  # those within its sentences too
        for command in re.findall(r"`((?:dvc|git|make|python) [^`]+)`", text):
            run(project, "" if command in elsewhere else command)
