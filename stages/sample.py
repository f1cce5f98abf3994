"""sample: models/minilm -> what it writes, in reports/, and where its heads look while it does."""

from pathlib import Path

import numpy as np
import torch

from minilm import checkpoint, pages, plots, tracking
from minilm.data.tokenizer import CharTokenizer
from minilm.device import choose_device
from minilm.files import all_or_nothing
from minilm.generation import Sampling, name_characters, sample_ids
from minilm.model.gpt import MiniGPT
from minilm.params import SampleParams, load_params
from stages import project_root, run

MODEL, REPORTS = Path("models/minilm"), Path("reports")
# Characters of the picture of attention: those of the prompt, with the first sample's up to the least.
LEAST_SHOWN, MOST_SHOWN = 24, 48


def main() -> None:
    """Let the model continue the prompt, num_samples times."""
    params = load_params("params.yaml").sample
    with tracking.run_of(project_root(), "sample", MODEL) as notebook:
        notebook.log_results(params.model_dump(exclude={"device"}), {}, write(params))


def write(params: SampleParams) -> list[Path]:
    """Write the samples, and the picture of attention; returns the files."""
    source = checkpoint.read_card(MODEL).data
    print("sample:", source)

    model, tokenizer = checkpoint.load(MODEL, choose_device(params.device))
    warnings = [str(source)] if source.fallback_for else []
    # A text of one's own may lack the prompt's letters. That must not cost the run, but it must be seen.
    if unknown := tokenizer.unknown_characters(params.prompt):
        warnings.append(
            f"WARNING: prompt: {name_characters(unknown)}; set another with dvc exp run -S prompt=..."
        )
        print("sample:", warnings[-1])
    settings = params.model_dump(exclude={"prompt", "num_samples", "device"})
    samples = write_samples(model, tokenizer, params)
    lines = [
        *(warnings or [str(source)]),
        f"prompt: {params.prompt!r}, " + ", ".join(f"{key}: {value!r}" for key, value in settings.items()),
    ]
    for seed, text in enumerate(samples, params.sample_seed):
        lines += [f"--- sample with seed {seed} ---", text, ""]
    shown = samples[0][: max(len(params.prompt), LEAST_SHOWN)]
    shown = shown[-min(MOST_SHOWN, model.config.block_size) :]
    ids = torch.from_numpy(tokenizer.encode(shown).astype(np.int64)).to(model.token_embedding.weight.device)
    weights = model.attention_weights(ids[None])[:, 0]  # (layers, heads, T, T)
    with all_or_nothing(REPORTS) as new:
        (new / "samples.txt").write_text("\n".join(lines), encoding="utf-8")
        fragment = pages.samples_fragment(params.prompt, settings, samples, warnings)
        (new / "samples.js").write_text(pages.samples_script(fragment), encoding="utf-8")
        plots.attention_maps(weights.cpu().numpy(), shown, new / "attention.png")
        written = sorted(REPORTS / file.name for file in new.iterdir())
    print("\n".join(lines[-3:]))
    return written


def write_samples(model: MiniGPT, tokenizer: CharTokenizer, params: SampleParams) -> list[str]:
    """The prompt and what follows it, once for each seed from sample_seed on."""
    prompt_ids = torch.from_numpy(tokenizer.encode(params.prompt).astype(np.int64))
    sampling = Sampling(params.temperature, params.top_k, params.top_p, params.min_p)
    seeds = range(params.sample_seed, params.sample_seed + params.num_samples)
    stop_ids = tokenizer.encode(params.stop).tolist()
    rows = sample_ids(model, prompt_ids, params.max_new_tokens, sampling, seeds, stop_ids)
    return [params.prompt + tokenizer.decode(row) for row in rows]


if __name__ == "__main__":
    run(main)
