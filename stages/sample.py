"""sample: models/minilm -> what it writes after the prompt, and where its heads look, in reports/."""

import json
from typing import Any

import numpy as np
import torch

from minilm import checkpoint
from minilm.data.tokenizer import CharTokenizer, describe_unknown
from minilm.device import choose_device
from minilm.files import MODEL, REPORTS, all_or_nothing
from minilm.generation.config import Sampling
from minilm.generation.kv_cache import sample_ids, useful_threads
from minilm.model.gpt import MiniGPT
from minilm.params import SampleParams, load_params
from stages import run

# Characters whose attention is shown: those of the prompt, extended by the first sample's to the least.
LEAST_SHOWN, MOST_SHOWN = 24, 48


def main() -> None:
    """Let the model continue the prompt, num_samples times."""
    params = load_params("params.yaml").sample
    info = checkpoint.read_info(MODEL)
    print("sample:", info.data)
    model, tokenizer = checkpoint.load(MODEL, choose_device(params.device))
    torch.set_num_threads(useful_threads(model, params.num_samples))

    warnings = []
    # One's own text may lack the prompt's characters. That must not fail the pipeline, but it must be seen.
    if unknown := tokenizer.unknown_characters(params.prompt):
        warnings.append(
            f"WARNING: prompt: {describe_unknown(unknown)}; set another with dvc exp run -S prompt=..."
        )
        print("sample:", warnings[-1])
    if unknown := tokenizer.unknown_characters(params.stop):
        warnings.append(f"WARNING: stop: {describe_unknown(unknown)}, so no sample stops there")
        print("sample:", warnings[-1])
    samples = write_samples(model, tokenizer, params)
    settings = params.model_dump(exclude={"prompt", "device"})
    lines = [
        str(info.data),
        *warnings,
        f"prompt: {params.prompt!r}, " + ", ".join(f"{key}: {value!r}" for key, value in settings.items()),
    ]
    for seed, text in enumerate(samples, params.sample_seed):
        lines += [f"--- sample with seed {seed} ---", text, ""]
    found = {
        "model_sha256": info.model_sha256,
        "prompt": params.prompt,
        "settings": settings,
        "warnings": warnings,
        "samples": samples,
        "attention": attention(model, tokenizer, samples[0], len(params.prompt)),
    }
    with all_or_nothing(REPORTS) as new:
        (new / "samples.txt").write_text("\n".join(lines), encoding="utf-8")
        (new / "samples.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    print("\n".join(lines[-3:]))


def write_samples(model: MiniGPT, tokenizer: CharTokenizer, params: SampleParams) -> list[str]:
    """The prompt and what follows it, once for each seed from sample_seed on."""
    prompt_ids = torch.from_numpy(tokenizer.encode(params.prompt).astype(np.int64))
    settings = params.model_dump(exclude={"prompt", "num_samples", "sample_seed", "device"})
    sampling, stop_ids = Sampling(**settings, seed=params.sample_seed), tokenizer.encode(params.stop).tolist()
    samples = sample_ids(model, prompt_ids, sampling, params.num_samples, stop_ids)
    return [params.prompt + tokenizer.decode(ids) for ids in samples]


def attention(model: MiniGPT, tokenizer: CharTokenizer, sample: str, prompt_length: int) -> dict[str, Any]:
    """What each head attends to in the beginning of a sample: (layers, heads, T, T)."""
    text = sample[: max(prompt_length, LEAST_SHOWN)][-min(MOST_SHOWN, model.config.block_size) :]
    ids = torch.from_numpy(tokenizer.encode(text).astype(np.int64)).to(model.token_embedding.weight.device)
    weights = model.attention_weights(ids[None])[:, 0].cpu().numpy()
    return {"text": text, "weights": weights.astype(np.float64).round(4).tolist()}


if __name__ == "__main__":
    run(main)
