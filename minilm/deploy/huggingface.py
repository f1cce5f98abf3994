"""Export of a trained model to Hugging Face's transformers, which needs no code of ours to load it.

python -m minilm.deploy.huggingface models/minilm OUT
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minilm.checkpoint import load, read_info
from minilm.data.tokenizer import UNKNOWN_CHARACTER, UNKNOWN_ID, CharTokenizer
from minilm.deploy.hf_architectures import stock_architecture
from minilm.deploy.model_card import find_metrics, model_card
from minilm.errors import InputError, UserError
from minilm.files import all_or_nothing
from minilm.generation.config import Sampling


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m minilm.deploy.huggingface",
        description="Write a trained model, with a model card, for transformers to load without MiniLM.",
        epilog="docs/export.md has the settings that map and the architectures that they map to.",
    )
    parser.add_argument("folder", type=Path, help="the model folder, such as models/minilm")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must be new or empty")
    parser.add_argument("--format", choices=["transformers"], help=argparse.SUPPRESS)  # there was one only
    parsed = parser.parse_args(arguments)
    try:
        print(f"export: {parsed.out}: {export(parsed.folder, parsed.out)}")
    except (UserError, OSError, SafetensorError) as error:
        sys.exit(f"error: {error}")


def export(folder: Path, out: Path) -> str:
    """Write the model in `folder` to `out`, whole or not at all; returns one line that describes the result.

    Raises InputError if the model folder is missing or damaged, its settings map to no stock architecture,
    `out` is not empty, or transformers is not installed.
    """
    info = read_info(folder)
    try:
        architecture = stock_architecture(info.config)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{out} is in the model folder, which must stay as it is; name another folder")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} exists already; name a new folder or an empty one")
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging
    except ImportError as error:
        remedy = "pip install -c constraints.txt -e '.[export]'"
        raise InputError(f"this needs transformers ({error}): {remedy}") from None
    logging.disable_progress_bar()

    model, tokenizer = load(folder)
    configuration = AutoConfig.for_model(architecture.model_type, **architecture.configuration(model))
    stock = AutoModelForCausalLM.from_config(configuration)
    # Some architectures have a bias in each layer, whether the model has or not.
    zeros = {name: 0 * tensor for name, tensor in stock.named_parameters() if name.endswith("bias")}
    stock.load_state_dict(zeros | architecture.weights(model))
    stock.generation_config = GenerationConfig(
        do_sample=True,
        temperature=Sampling.temperature,
        top_k=Sampling.top_k,
        max_length=info.config.block_size,
        suppress_tokens=[UNKNOWN_ID],
    )
    metrics = find_metrics(folder, info.model_sha256)
    with all_or_nothing(out.resolve()) as new:
        stock.save_pretrained(new)
        as_fast_tokenizer(tokenizer, info.config.block_size).save_pretrained(new)
        card = model_card(info, tokenizer, architecture, model.num_parameters, metrics)
        (new / "README.md").write_text(card, encoding="utf-8")
    found = f"{len(metrics)} metrics" if metrics else "no metrics, since this model has no evaluation"
    return f"{architecture.name} with {model.num_parameters:,} parameters; README.md with {found}"


def as_fast_tokenizer(tokenizer: CharTokenizer, block_size: int) -> Any:
    """The same characters with the same ids, as a PreTrainedTokenizerFast of transformers.

    Byte-pair encoding without any merges leaves each character alone. It has no special tokens, which would
    be cut out of a text in which they occur, and changes no character before it looks it up.
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = UNKNOWN_CHARACTER + tokenizer.characters
    vocab = {character: number for number, character in enumerate(characters)}
    backend = Tokenizer(models.BPE(vocab, merges=[], unk_token=UNKNOWN_CHARACTER, fuse_unk=False))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=block_size,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


if __name__ == "__main__":
    main()
