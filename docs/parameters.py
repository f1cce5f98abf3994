"""Print docs/parameters.md, from the schema of params.yaml: python -m docs.parameters > FILE."""

from minilm.params import STAGES, allowed, default_text

HEAD = """# Parameters

Every key of [params.yaml](../params.yaml), by the stage that reads it. Each is a flag of the command
line (`python main.py --train --embed_dim 256`), and can be changed in an experiment (`dvc exp run -S
embed_dim=256`).

A value that is not allowed stops a stage before it does anything, with every problem listed, and the
outputs of the last good run stay. `device` is one key that three stages read. The report stage shows the
keys of download and encode on its page, so it reads them too.

This page is printed by `python -m docs.parameters` from the schema, [minilm/params.py](../minilm/params.py).
"""


def page() -> str:
    """The whole page, as Markdown."""
    lines = [HEAD]
    for stage, keys in STAGES.items():
        lines += [f"## {stage}\n", "| key | default | meaning | allowed |", "| --- | --- | --- | --- |"]
        for key, field in keys.model_fields.items():
            lines.append(f"| `{key}` | `{default_text(key)}` | {field.description} | {allowed(key)} |")
        lines[-1] += "\n"
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
