"""A model's lineage as text for a terminal."""

import textwrap
from typing import Any

from minilm.lineage import Lineage
from minilm.pages import MEANINGS
from minilm.params import FIELDS, STAGES
from minilm.rows import text_of_setting

WIDTH = 100  # columns
_MOST = 4  # experiments, commits and rows of the same model that are listed

Lines = list[tuple[str, str]]  # labels and what they label


def text_of(lineage: Lineage, all_params: bool = False) -> str:
    """The lineage, part by part; what could not be found stands in its part behind a `!`.

    Args:
        lineage: what was found.
        all_params: print also the parameters that have their defaults.
    """
    parts = {
        "Model": _model(lineage),
        "Parameters": _params(lineage, all_params),
        "Data": _data(lineage),
        "Code": _code(lineage),
        "DVC": _dvc(lineage),
        "MLflow": _mlflow(lineage),
        "Metrics": _metrics(lineage),
    }
    assert lineage.missing.keys() <= parts.keys()
    text = []
    for part, lines in parts.items():
        text.append(part)
        width = max((len(label) for label, _ in lines), default=0) + 2
        for label, content in lines:
            text.append(_wrap(f"  {label:<{width}}", content))
        text += [_wrap("  ! ", reason) for reason in lineage.missing.get(part, [])]
        text.append("")
    return "\n".join(text[:-1])


def _model(lineage: Lineage) -> Lines:
    model, made = lineage.model, lineage.made_with
    lines = []
    if model.folder:
        lines.append(("folder", str(model.folder)))
    elif lineage.in_cache:
        lines.append(("files", "in DVC's cache"))
    if model.weights:
        lines.append(("sha256", model.weights))
    if lineage.num_parameters:
        lines.append(("size", f"{lineage.num_parameters:,} parameters"))
    if made:
        lines.append(("made with", ", ".join(f"{key} {value}" for key, value in made.items())))
    return lines


def _params(lineage: Lineage, all_params: bool) -> Lines:
    lines, seen = [], set[str]()
    for stage, cls in STAGES.items():
        keys = [key for key in cls.model_fields if key in lineage.params and key not in seen]
        seen.update(keys)
        shown = [key for key in keys if all_params or not _is_default(lineage, key)]
        if shown:
            lines.append((stage, ", ".join(_param(lineage, key) for key in shown)))
    hidden = sum(_is_default(lineage, key) for key in lineage.params)
    if hidden and not all_params:
        lines.append(("the rest", f"{hidden} at their defaults; --all prints them too"))
    return lines


def _is_default(lineage: Lineage, key: str) -> bool:
    return lineage.params[key] == FIELDS[key].default and key not in lineage.first


def _param(lineage: Lineage, key: str) -> str:
    text = f"{key}={text_of_setting(lineage.params[key])}"
    return f"{text} (first {text_of_setting(lineage.first[key])})" if key in lineage.first else text


def _data(lineage: Lineage) -> Lines:
    if not (data := lineage.data):
        return []
    characters = ", ".join(f"{count:,} {split}" for split, count in data.characters.items())
    return [
        ("dataset", data.dataset),
        ("source", data.origin),
        *(
            [("WARNING", f"the BUNDLED SAMPLE TEXT stands in for {data.fallback_for}")]
            if data.fallback_for
            else []
        ),
        ("sha256", data.sha256),
        *([("characters", characters)] if characters else []),
        *([("now", "data/raw holds this very text")] if lineage.data_now else []),
    ]


def _code(lineage: Lineage) -> Lines:
    if not (code := lineage.code):
        return []
    lines = [("commit", f"{code.commit[:12]} {code.date} {code.subject}".strip())]
    if code.dirty is None:
        return [*lines, ("changes", "not known whether there were any")]
    if not code.dirty:
        return [*lines, ("changes", "none")]
    lines.append(("changes", "UNCOMMITTED ones in *.py or dvc.yaml: the commit is not all of the code"))
    for version in lineage.versions[:1]:
        if version.experiment:
            lines.append(("", f"git diff {code.commit[:12]} {str(version.commit)[:12]} -- '*.py' dvc.yaml"))
    return lines


def _dvc(lineage: Lineage) -> Lines:
    lines = []
    experiments = [version for version in lineage.versions if version.experiment]
    commits = [version for version in lineage.versions if version.commit and not version.experiment]
    for version in experiments[:_MOST]:
        lines.append(("experiment", f"{version.experiment}, run on {str(version.baseline)[:12]}"))
    for version in commits[: _MOST if not experiments else 1]:
        lines.append(("commit", f"{str(version.commit)[:12]}, its dvc.lock names the model"))
    if any(version.commit is None for version in lineage.versions):
        lines.append(("workspace", "the dvc.lock here names the model"))
    if (more := len(experiments) + len(commits) - len(lines)) > 0:
        lines.append(("", f"and {more} more"))
    if lineage.versions:
        lines.append(("bring it back", lineage.versions[0].command))
    return lines


def _mlflow(lineage: Lineage) -> Lines:
    if not lineage.rows:
        return []
    row, *others = lineage.rows
    tags = row.data.tags
    lines = [
        ("run", row.info.run_id),
        ("name", f"{row.info.run_name}"),
        ("status", row.info.status),
        *([("error", tags["error"])] if "error" in tags else []),
        *([("restored", "made from the model folder, so it has no curves")] if "restored" in tags else []),
        ("store", lineage.store),
    ]
    return lines + [("also", f"run {other.info.run_id}, of the same model") for other in others[:_MOST]]


def _metrics(lineage: Lineage) -> Lines:
    if not lineage.metrics:
        return []
    context = lineage.params.get("eval_context", "unknown")
    order = sorted(lineage.metrics, key=lambda key: (not key.startswith("test_"), key))
    return [
        ("from", lineage.metrics_from),
        *([("test_* with", f"eval_context={context}")] if order[0].startswith("test_") else []),
        *((key, _figure(key, lineage.metrics[key])) for key in order),
    ]


def _figure(key: str, value: float) -> str:
    unit = MEANINGS[key].unit if key in MEANINGS else ""
    return f"{value:.1%}" if unit == "%" else f"{value:,.6g} {unit}".strip()


def _wrap(head: str, content: Any) -> str:
    """The content beside its head, in as many lines as it takes; a word is never broken."""
    return textwrap.fill(
        str(content),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
