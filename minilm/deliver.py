"""Deliver to MLflow what the stages have to tell it.

python -m minilm.deliver    what is kept in the spool and that no stage writes on any more

Each stage starts a process of its own, `python -m minilm.deliver PAGE`, that delivers the stage's page while
it is being written. It takes next to nothing of the cores from the stage, and outlives it, so that a stage
that was killed is told of too.
"""

import argparse
import hashlib
import os
import select
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from requests import HTTPError, RequestException

from minilm.delivery import Delivery
from minilm.rows import without_password
from minilm.spool import (
    DELIVERED,
    LOG,
    READY,
    REFUSED,
    TROUBLE,
    is_closed,
    pages,
    read_entries,
    spool_of,
    store_of,
)

from mlflow.exceptions import MlflowException, RestException  # isort: skip - minilm.store sets mlflow up

# Delivering may take this share of the time of one of the cores, which training needs.
_LARGEST_SHARE = 0.005
_PAUSES = 1.0, 30.0  # the shortest and the longest between two attempts, in seconds


def main() -> None:
    """Read the command line, and deliver."""
    parser = argparse.ArgumentParser(
        prog="python -m minilm.deliver",
        description="Deliver to MLflow what could not be delivered before, when a server was down, say.",
        epilog="The project is $DVC_ROOT or the current folder; each page goes to the store it is for.",
    )
    parser.add_argument("page", nargs="?", type=Path, help="one that is being written; stages use this")
    arguments = parser.parse_args()
    if arguments.page:
        follow(arguments.page)
        return
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    for folder in spool_of(root).glob(f"{REFUSED}*"):  # MLflow may take them now
        folder.rename(folder.with_name(folder.name.removeprefix(REFUSED)))
    before, (refused, failed) = len(pages(root)), deliver_all(root)
    left = pages(root)
    print(f"deliver: {before - len(left) - len(refused)} of {before} pages delivered")
    if writing := sum(not is_closed(folder) for folder in left):
        print(f"deliver: {writing} are still being written, and delivered meanwhile")
    if refused or failed:
        problems = [f"error: {problem}" for problem in (*refused.values(), *failed)]
        kept = f"what is left stays in {spool_of(root)} until the next attempt"
        sys.exit("\n".join([*problems, kept] if left else problems))


def deliver_all(root: Path) -> tuple[dict[Path, str], list[str]]:
    """Deliver all closed pages of a project.

    Returns:
        The pages that were refused, and the stores where it failed, each with a sentence.
    """
    refused: dict[Path, str] = {}
    failed: list[str] = []
    for store in {store: None for store in map(store_of, pages(root)) if store is not None}:
        try:
            refused |= deliver(root, store)
        except Exception as error:  # MLflow's, SQLAlchemy's, those of requests
            failed.append(without_password(f"{store}: {reason(error)}"))
    return refused, failed


def deliver(root: Path, store: str, live: Delivery | None = None) -> dict[Path, str]:
    """Deliver the closed pages for a store, oldest first, since one may build on another.

    A page that MLflow refuses for good is put aside, so that it holds up no other.

    Args:
        root: the project's main folder.
        store: its address.
        live: that of a page of which is delivered what there is, closed or not.

    Returns:
        What was refused: the pages, each with a sentence.

    Raises:
        Exception: the first that MLflow raised; what was not delivered stays where it is.
    """
    refused: dict[Path, str] = {}
    errors: list[Exception] = []
    # One at a time, so that two never look for a row that both then make.
    with FileLock(spool_of(root) / f"{hashlib.sha256(store.encode()).hexdigest()[:8]}.lock"):
        for folder in pages(root):
            if store_of(folder) != store:
                continue
            closed = is_closed(folder)
            page = live if live and live.folder == folder else None
            if not (closed or page):
                continue
            if not store:
                if not read_entries(folder):  # what its process did not live to write
                    shutil.rmtree(folder)
                continue
            try:
                page = page or Delivery(root, folder)
                if closed:
                    page.finish()
                else:
                    page.advance()
            except Exception as error:
                if closed and _is_refusal(error, store):
                    with suppress(Exception):  # the row may be what MLflow refuses
                        if page:
                            page.give_up()
                    refused[folder] = _put_aside(folder, error)
                elif _is_of_page(error):  # such as a file that is too large for the server
                    errors.append(error)
                else:
                    raise
    if errors:
        raise errors[0]
    return refused


def _put_aside(folder: Path, error: Exception) -> str:
    """Take a page out of the way of others; returns what to say of it, which its log says too."""
    aside = folder.rename(folder.with_name(REFUSED + folder.name))
    said = without_password(f"MLflow refused a page, now put aside as {aside}: {reason(error)}")
    with (aside / LOG).open("a", encoding="utf-8") as log:
        log.write(said + "\n")
    return said


def follow(folder: Path) -> None:
    """Deliver a page while it is written, until standard input ends, as it does when its writer does.

    It says on standard output when it is ready, and at the end what became of the page.
    """
    root, store = folder.parent.parent, store_of(folder) or ""
    answers, sys.stdout = sys.stdout, sys.stderr
    print(READY, file=answers, flush=True)
    os.chdir(root)  # that of an experiment in a temporary folder is removed when its last stage ends
    live, pause, is_written = None, 0.0, True
    while is_written:
        readable, _, _ = select.select([sys.stdin], [], [], pause)
        is_written = not readable
        began = time.process_time()
        try:
            live = live or Delivery(root, folder)
            outcome = deliver(root, store, live).get(folder, DELIVERED)
            (folder / TROUBLE).unlink(missing_ok=True)
            pause = (time.process_time() - began) / _LARGEST_SHARE
        except Exception as error:
            outcome, pause = reason(error), 2 * pause
            try:
                (folder / TROUBLE).write_text(outcome, encoding="utf-8")
            except FileNotFoundError:  # the page was closed, and another process came first
                outcome = DELIVERED
        pause = min(max(pause, _PAUSES[0]), _PAUSES[1])
    with suppress(BrokenPipeError):  # it did not wait
        print(outcome, file=answers, flush=True)
    deliver_all(root)  # what is meant for other stores


def reason(error: BaseException) -> str:
    """What went wrong in the first place, in one line; around it others tell the same at length."""
    while error.__context__:
        error = error.__context__
    return (str(error).strip() or repr(error)).split("\n")[0]


def _is_refusal(error: Exception, store: str) -> bool:
    """Whether MLflow itself says that what it was told is wrong; a proxy before it says much else."""
    own = isinstance(error, RestException) or not store.startswith("http")
    codes = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
    return own and isinstance(error, MlflowException) and error.error_code in codes


def _is_of_page(error: Exception) -> bool:
    """Whether the next page may fare better, since the store answers."""
    if isinstance(error, HTTPError) and error.response is not None:
        return 400 <= error.response.status_code < 500 and error.response.status_code not in (401, 403, 429)
    return not isinstance(error, MlflowException | RequestException)


if __name__ == "__main__":
    main()
