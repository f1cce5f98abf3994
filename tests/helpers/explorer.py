"""An explorer page of a tiny model, and what is done with it in a browser."""

from dataclasses import asdict

import numpy as np

from helpers.models import randomized
from minilm import CharTokenizer, ModelConfig, checkpoint
from minilm.data.provenance import Source
from minilm.generation.config import Sampling
from minilm.report.explorer.page import explorer_page, film_data, model_data

TEXT = "the quick brown fox jumps over the lazy dog; the quick dog jumps\nover the fox. " * 3
EVIL = "<img src=x onerror='window.ran=1'></script><script>window.ran=1</script>"
STEPS = 8


def explored(folder):
    """A model whose every part matters, its tokenizer, which knows EVIL's characters, and the page's data.

    The film has three frames before the model itself.
    """
    tokenizer = CharTokenizer.from_text(TEXT + EVIL)
    model = randomized(ModelConfig(tokenizer.vocab_size, 32, embed_dim=16, num_heads=2))
    checkpoint.save(folder, model, tokenizer, {"steps": STEPS}, Source(EVIL, "", None, {}, ""), {})
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    frames = {step: {n: w * np.float32(step / STEPS) for n, w in weights.items()} for step in (1, 2, 4)}
    data = model_data(folder) | {
        "film": film_data(frames),
        "steps": STEPS,
        "loss": {"step": [4, 8], "train_loss": [3.0, 2.0], "val_loss": [3.1, 2.2]},
        "heads": [[{"previous": 0.1, "induction": 0.2}, {"previous": 0.75, "induction": 0.01}]] * 2,
        "prompt": "the ",
        "settings": asdict(Sampling(max_new_tokens=40, top_k=0)),
        "test_text": TEXT,
    }
    return model, tokenizer, data


def write_page(folder, *models):
    """The page of one or more models."""
    path = folder / "explorer.html"
    path.write_text(explorer_page("MiniLM on " + models[0]["dataset"], models, {}), encoding="utf-8")
    return path


def ready(tab, tour=False):
    """The tab when the model has answered, without the tour if it is not asked for."""
    tab.evaluate("minilm.ready")
    tab.wait_for_function("document.getElementById('lens-table').rows.length > 0")
    if not tour:
        tab.click("#tour-close")
    return tab


def written(tab):
    """The text of the panel Write, line ends as they were."""
    return tab.locator("#written").text_content().replace("⏎\n", "\n")


def write(tab):
    """Press Write and wait for the end."""
    tab.click("#write-start")
    tab.wait_for_function("document.getElementById('write-stop').disabled")
    return written(tab)
