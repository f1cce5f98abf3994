"""Where git and DVC keep a model: the experiments and commits whose dvc.lock names it."""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MODEL = "models/minilm"
CODE = ("*.py", "dvc.yaml")  # what `git_dirty` in the notebook is about


@dataclass(frozen=True)
class Version:
    """A state of the project, in which dvc.lock names a model.

    Attributes:
        lock: what its dvc.lock holds, every value as text.
        commit: of git; None for the dvc.lock in the workspace.
        experiment: its name, if the commit is that of a DVC experiment.
        baseline: the commit that the experiment was run on.
        unique: whether no other experiment has that name.
    """

    lock: dict[str, Any]
    commit: str | None = None
    experiment: str | None = None
    baseline: str | None = None
    unique: bool = True

    @property
    def params(self) -> dict[str, str]:
        """The parameters of all stages, as text."""
        stages = self.lock.get("stages", {}).values()
        return {
            key: str(value)
            for stage in stages
            for key, value in stage.get("params", {}).get("params.yaml", {}).items()
        }

    @property
    def command(self) -> str:
        """What brings the version into the workspace."""
        if self.experiment:
            name = self.experiment if self.unique else str(self.commit)[:10]
            return f"dvc exp apply {name}"
        return f"git checkout {str(self.commit)[:10]} && dvc checkout" if self.commit else "dvc checkout"

    def __str__(self) -> str:
        if self.experiment:
            return f"experiment {self.experiment}"
        return f"commit {self.commit[:10]}" if self.commit else "the workspace's dvc.lock"

    def digest(self, output: str = MODEL) -> str | None:
        """DVC's MD5 of an output."""
        for stage in self.lock.get("stages", {}).values():
            for out in stage.get("outs", []):
                if out["path"] == output:
                    return out.get("md5")
        return None


class StandingOutputs(NamedTuple):
    """What a stage wrote for a model, with the parameters, as text, that it had."""

    params: dict[str, str]
    files: list[Path]


class Experiment(NamedTuple):
    """A DVC experiment's name, its commit, and the commit that it was run on."""

    name: str
    commit: str
    baseline: str


class Cache:
    """DVC's cache of a project, for reading.

    Args:
        root: the project's main folder.
    """

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def _store(self) -> Any:
        from dvc.exceptions import NotDvcRepoError  # type: ignore[import-untyped]
        from dvc.repo import Repo  # type: ignore[import-untyped]

        try:
            return Repo(str(self.root)).cache.local
        except NotDvcRepoError:
            return None

    def file(self, digest: str | None) -> Path | None:
        """The file of that digest, if the cache has it."""
        if digest is None or self._store is None:
            return None
        path = Path(self._store.oid_to_path(digest))
        return path if path.is_file() else None

    def folder(self, digest: str | None) -> dict[str, Path] | None:
        """The files of a folder by their names; None unless the cache has all of it."""
        if (listing := self.file(digest)) is None:
            return None
        files = {entry["relpath"]: self.file(entry["md5"]) for entry in json.loads(listing.read_text())}
        return {name: file for name, file in files.items() if file} if all(files.values()) else None


def git(root: Path, *arguments: str) -> str | None:
    """What git answers, or None if it refuses or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def experiments(root: Path) -> list[Experiment]:
    """The DVC experiments that are here, newest first."""
    listed = git(
        root, "for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps"
    )
    found = re.findall(r"^(\S+) refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(\S+)$", listed or "", re.MULTILINE)
    return [Experiment(name, commit, start + end) for commit, start, end, name in found]


def versions(root: Path) -> list[Version]:
    """The workspace's version, the experiments', newest first, then those of HEAD and of other commits."""
    found = []
    if (file := root / "dvc.lock").is_file():
        found.append(Version(_parse(file.read_text(encoding="utf-8"))))
    known = experiments(root)
    names = [experiment.name for experiment in known]
    changes = git(root, "log", "--branches", "--tags", "--remotes", "HEAD", "--format=%H", "--", "dvc.lock")
    commits = dict.fromkeys([git(root, "rev-parse", "HEAD") or "", *(changes or "").split()])
    wanted = [*(experiment.commit for experiment in known), *filter(None, commits)]
    locks = dict(zip(wanted, _locks(root, wanted), strict=False))
    for name, commit, baseline in known:
        if lock := locks.get(commit):
            found.append(Version(lock, commit, name, baseline, names.count(name) == 1))
    return found + [Version(lock, commit) for commit in commits if (lock := locks.get(commit))]


def folder_digest(folder: Path) -> str:
    """The folder's MD5 as DVC computes it: that of its list of files, as JSON."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        {"md5": hashlib.md5(file.read_bytes()).hexdigest(), "relpath": file.relative_to(folder).as_posix()}
        for file in files
    ]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def standing_outputs(folder: Path, stage: str, model: Path) -> StandingOutputs | None:
    """A stage's outputs in a workspace, if by its dvc.lock they are of the very model that is there.

    Args:
        folder: the workspace.
        stage: such as `evaluate`.
        model: the model's folder.
    """
    lock = folder / "dvc.lock"
    recorded = _parse(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    found = recorded.get("stages", {}).get(stage, {})
    of_model = [dep.get("md5") for dep in found.get("deps", []) if dep["path"] == MODEL]
    outs = {folder / out["path"]: out.get("md5") for out in found.get("outs", [])}
    if of_model != [folder_digest(model)] or not all(map(Path.is_file, outs)):
        return None
    if any(hashlib.md5(file.read_bytes()).hexdigest() != digest for file, digest in outs.items()):
        return None
    return StandingOutputs(found.get("params", {}).get("params.yaml", {}), list(outs))


def _locks(root: Path, commits: list[str]) -> Iterator[dict[str, Any] | None]:
    """The dvc.lock of each commit, None where it has none."""
    if not commits:
        return
    names = "".join(f"{commit}:./dvc.lock\n" for commit in commits)
    done = subprocess.run(["git", "cat-file", "--batch"], cwd=root, input=names.encode(), capture_output=True)
    rest, parsed = done.stdout, dict[bytes, dict[str, Any]]()
    while rest:
        head, _, rest = rest.partition(b"\n")
        if head.endswith(b" missing"):
            yield None
            continue
        oid, _, size = head.split()
        if oid not in parsed:  # most commits leave it as it is
            parsed[oid] = _parse(rest[: int(size)].decode())
        rest = rest[int(size) + 1 :]
        yield parsed[oid]


def _parse(lock: str) -> dict[str, Any]:
    """dvc.lock, with libyaml's parser if PyYAML was built with it, which takes a tenth of the time."""
    found = yaml.load(lock, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    return found if isinstance(found, dict) else {}
