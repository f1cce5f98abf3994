"""sample: models/minilm -> reports/samples.txt."""

from pathlib import Path

import torch

from minilm import checkpoint, tracking
from minilm.device import choose_device
from minilm.files import all_or_nothing
from minilm.generation import generate_ids, name_characters
from minilm.params import load_params
from stages import project_root, run

MODEL, REPORTS = Path("models/minilm"), Path("reports")


def main() -> None:
    """Let the model continue the prompt, num_samples times."""
    params = load_params("params.yaml").sample
    source = checkpoint.read_card(MODEL).data
    print("sample:", source)

    model, tokenizer = checkpoint.load(MODEL, choose_device(params.device))
    lines = [str(source)]
    # A text of one's own may lack the prompt's letters. That must not cost the run, but it must be seen.
    if unknown := tokenizer.unknown_characters(params.prompt):
        lines.append(
            f"WARNING: prompt: {name_characters(unknown)}; set another with dvc exp run -S prompt=..."
        )
        print("sample:", lines[-1])
    settings = params.model_dump(exclude={"prompt", "num_samples", "sample_seed", "device"})
    lines.append(
        f"prompt: {params.prompt!r}, " + ", ".join(f"{key}: {value}" for key, value in settings.items())
    )
    prompt_ids = torch.from_numpy(tokenizer.encode(params.prompt).astype("int64"))
    for seed in range(params.sample_seed, params.sample_seed + params.num_samples):
        text = params.prompt + tokenizer.decode(generate_ids(model, prompt_ids, **settings, seed=seed))
        lines += [f"--- sample with seed {seed} ---", text, ""]
    with all_or_nothing(REPORTS) as new:
        (new / "samples.txt").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines[-3:]))

    with tracking.run_of(project_root(), MODEL) as notebook:
        notebook.log_params(params.model_dump(exclude={"device"}))
        notebook.log_files(REPORTS / "samples.txt")


if __name__ == "__main__":
    run(main)
