"""All that a project knows of its models: in models/minilm, in git and DVC, in the lab notebook.

Models are told apart by the SHA-256 of model.safetensors, and those of the same weights by that of
config.json, which says what made them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minilm.data.provenance import Source
from minilm.errors import InputError
from minilm.files import sha256_of
from minilm.rows import Rows, experiments_of
from minilm.versions import MODEL, Cache, Version, folder_digest, versions

if TYPE_CHECKING:
    from mlflow.entities import Run

# As in minilm.checkpoint, which is not imported here since it loads torch.
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True)
class Model:
    """What identifies a model and, where they are at hand, its files.

    Attributes:
        weights: SHA-256 of model.safetensors; None if that is not known.
        config: SHA-256 of config.json; None if that is not known.
        digest: DVC's MD5 of the folder; None if that is not known.
        folder: where it lies; None for one in DVC's cache, or nowhere.
        files: by their names in the model folder.
    """

    weights: str | None = None
    config: str | None = None
    digest: str | None = None
    folder: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def is_same(self, other: "Model") -> bool:
        """Whether both are one model, by what is known of them."""
        if self.digest and self.digest == other.digest:
            return True
        same_config = not (self.config and other.config) or self.config == other.config
        return self.weights is not None and self.weights == other.weights and same_config

    @cached_property
    def card(self) -> dict[str, Any]:
        """What config.json holds; empty if there is none."""
        return read_config(self.files[CONFIG]) if CONFIG in self.files else {}


class Archive:
    """Looks models up.

    Args:
        root: the project's main folder.

    Attributes:
        rows: the notebook's; None if it cannot be read, for the reason in `no_rows`.
        versions: the states of the project that have a model in dvc.lock.
    """

    def __init__(self, root: Path):
        self.root, self.versions, self.no_rows = root, versions(root), ""
        self._cache = Cache(root)
        self.rows: Rows | None = None
        try:
            self.rows = Rows(root)
        except InputError as error:
            self.no_rows = str(error)

    @cached_property
    def models(self) -> dict[str, Model]:
        """Those of the versions, by DVC's digest; with their files where DVC's cache has all of them."""
        digests = dict.fromkeys(filter(None, (version.digest() for version in self.versions)))
        return {digest: _in_cache(digest, self._cache.folder(digest)) for digest in digests}

    @cached_property
    def local(self) -> Model | None:
        """The one in models/minilm."""
        with suppress(InputError):
            return in_folder(self.root / MODEL)
        return None

    def versions_of(self, model: Model) -> list[Version]:
        """The versions that have the model in their dvc.lock: experiments, the workspace, commits."""
        same = {digest for digest, other in self.models.items() if other.is_same(model)}
        found = [version for version in self.versions if version.digest() in same]
        return sorted(found, key=lambda version: version.experiment is None)

    def rows_where(self, *conditions: str) -> "list[Run]":
        """The notebook's rows that meet one of MLflow's conditions, newest first; none without a notebook."""
        if self.rows is None:
            return []
        try:
            found = {run.info.run_id: run for condition in conditions for run in self.rows.all(condition)}
        except InputError as error:
            self.rows, self.no_rows = None, str(error)
            return []
        return sorted(found.values(), key=lambda run: run.info.start_time, reverse=True)

    def rows_of(self, model: Model) -> "list[Run]":
        """The notebook's rows of the model, newest first."""
        rows = self.rows_where(f"tags.model_sha256 = '{model.weights}'") if model.weights else []
        return [run for run in rows if of_row(run).is_same(model)]

    def reports(self, version: Version) -> dict[str, float]:
        """The metrics that DVC has kept with the version; empty if its cache lacks them."""
        files = [self._cache.file(version.digest(f"reports/{name}.json")) for name in ("train", "metrics")]
        return {key: value for file in files if file for key, value in json.loads(file.read_text()).items()}


class Found(NamedTuple):
    """A model, and the row or the experiment by which it was asked for."""

    model: Model
    row: "Run | None" = None
    experiment: str | None = None


def identify(archive: Archive, name: str) -> Found:
    """The model of that name.

    Args:
        archive: to look it up in.
        name: a model folder, an MLflow run id, the name of a DVC experiment, or at least 8 digits from the
            beginning of a model's SHA-256.

    Raises:
        InputError: there is no such model, or several.
    """
    if Path(name).is_dir() or "/" in name:
        return Found(in_folder(Path(name)))
    named = re.sub("[^-.0-9A-Za-z_]", "", name)  # a quote would end MLflow's condition
    for row in archive.rows_where(f"attributes.run_id = '{named}'"):
        return Found(of_row(row), row)
    digests = [version.digest() for version in archive.versions if version.experiment == name]
    in_git = next((archive.models[digest] for digest in digests if digest), None)
    if in_git and in_git.weights:
        return Found(in_git, None, name)
    for row in archive.rows_where(
        f"tags.dvc_experiment = '{named}'", f"tags.dvc_experiments LIKE '%{named}%'"
    ):
        if name in experiments_of(row):
            return Found(replace(of_row(row), digest=in_git.digest if in_git else None), row, name)
    if in_git:  # DVC's cache lacks its files, and the notebook has no row of it
        return Found(in_git, None, name)
    if re.fullmatch("[0-9a-f]{8,64}", name):
        models = list(_beginning_with(archive, name))
        if len({model.weights for model in models}) > 1:
            listed = ", ".join(sorted({f"{model.weights}"[:16] for model in models}))
            raise InputError(f"{name}: the SHA-256 of several models begins so: {listed}")
        if models:
            return Found(models[0])
    notebook = archive.rows.store if archive.rows else archive.no_rows
    raise InputError(
        f"{name}: found nothing of that name; tried as a folder, as a run id, an experiment and a model's "
        f"SHA-256 (8 to 64 digits) in the notebook ({notebook}), as an experiment in git, and as the SHA-256 "
        f"of a model in {MODEL} or in DVC's cache"
    )


def in_folder(folder: Path) -> Model:
    """The model in a folder, by what its config.json says.

    Raises:
        InputError: it is no model folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; train a model with `dvc repro` or get it with `dvc pull`"
        )
    files = {name: folder / name for name in (WEIGHTS, CONFIG, TOKENIZER) if (folder / name).is_file()}
    weights = read_config(folder / CONFIG)["sha256"][WEIGHTS]
    return Model(weights, sha256_of(folder / CONFIG), folder_digest(folder), folder, files)


def of_row(row: "Run") -> Model:
    """The model of one of the notebook's rows."""
    return Model(row.data.tags.get("model_sha256"), row.data.tags.get("model_folder_sha256"))


def read_config(file: Path) -> dict[str, Any]:
    """What a config.json says of its model.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        Source(**card["data"])
        (dict(card["params"]), dict(card["made_with"]), card["sha256"][WEIGHTS], card["sha256"][TOKENIZER])
    except FileNotFoundError:
        raise InputError(f"{file}: no such file, so this is no model folder") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged: {error!r}") from None
    return card


def _in_cache(digest: str, files: Mapping[str, Path] | None) -> Model:
    with suppress(InputError):  # of another version of this program
        if files and CONFIG in files:
            weights = read_config(files[CONFIG])["sha256"][WEIGHTS]
            return Model(weights, sha256_of(files[CONFIG]), digest, files=files)
    return Model(digest=digest)


def _beginning_with(archive: Archive, start: str) -> Iterator[Model]:
    """The models whose SHA-256, of the weights or of config.json, begins so."""
    tags = ("model_sha256", "model_folder_sha256")
    rows = archive.rows_where(*(f"tags.{tag} LIKE '{start}%'" for tag in tags))
    for model in (archive.local, *archive.models.values(), *map(of_row, rows)):
        if model and any(digest and digest.startswith(start) for digest in (model.weights, model.config)):
            yield model
