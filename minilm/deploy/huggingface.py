"""Export: a trained model for Hugging Face's transformers, which needs no code of ours to load it.

python -m minilm.export models/minilm OUT --format transformers
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from minilm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minilm.data.tokenizer import CharTokenizer


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m minilm.export",
        description="Write a trained model as a folder that AutoModelForCausalLM.from_pretrained and "
        "AutoTokenizer.from_pretrained load with no code of MiniLM, and a model card with it.",
        epilog="Which settings map to which architecture is in docs/export.md. The card's metrics come from "
        "MLflow's row of the model: from $MLFLOW_TRACKING_URI or from mlflow.db in $DVC_ROOT or the current "
        "folder.",
    )
    parser.add_argument("folder", type=Path, help="the model folder, such as models/minilm")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must be new or empty")
    parser.add_argument(
        "--format", choices=["transformers"], default="transformers", help="the only one so far"
    )
    arguments = parser.parse_args()
    try:
        print(f"export: {arguments.out}: {export(arguments.folder, arguments.out)}")
    except (InputError, OSError, SafetensorError) as error:
        sys.exit(f"error: {error}")


def export(folder: Path, out: Path) -> str:
    """Write the model in `folder` to `out`, whole or not at all; returns one line on what it is now.

    Raises:
        InputError: the model folder is missing or damaged, its settings map to no stock architecture, `out`
            cannot take it, or transformers is not installed.
    """
    from minilm.checkpoint import load, read_card
    from minilm.deploy.hf_architectures import stock_architecture
    from minilm.deploy.model_card import find_metrics, model_card
    from minilm.files import all_or_nothing
    from minilm.params import FIELDS

    card = read_card(folder)
    try:
        architecture = stock_architecture(card.config)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{out} is in the model folder, which must stay as it is; name another folder")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is there already; name a new folder or an empty one")
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(
            f"this needs the package transformers ({error}): pip install -e '.[export]'"
        ) from None
    logging.disable_progress_bar()

    model, tokenizer = load(folder)
    stock = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture.model_type, **architecture.configuration(model))
    )
    stock.load_state_dict(architecture.weights(model))
    stock.generation_config = GenerationConfig(
        do_sample=True,
        temperature=FIELDS["temperature"].default,
        top_k=FIELDS["top_k"].default,
        max_length=card.config.block_size,
        suppress_tokens=[0],  # the unknown character
    )
    metrics = find_metrics(card.model_sha256)
    with all_or_nothing(out.resolve()) as new:
        stock.save_pretrained(new)
        as_fast_tokenizer(tokenizer, card.config.block_size).save_pretrained(new)
        page = model_card(card, tokenizer, architecture, model.num_parameters, metrics)
        (new / "README.md").write_text(page, encoding="utf-8")
    found = (
        f"{len(metrics)} metrics from MLflow" if metrics else "no metrics, for MLflow has none of this model"
    )
    return f"{architecture.name} with {model.num_parameters:,} parameters; README.md with {found}"


def as_fast_tokenizer(tokenizer: "CharTokenizer", block_size: int) -> "PreTrainedTokenizerFast":
    """The same characters with the same ids, as a tokenizer of the library tokenizers.

    Byte-pair encoding without any merges leaves each character alone. It knows no special tokens, which
    would be cut out of a text in which they occur, and changes no character before it looks it up.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from minilm.data.tokenizer import UNKNOWN_CHARACTER

    characters = UNKNOWN_CHARACTER + tokenizer.characters
    backend = Tokenizer(
        BPE(
            vocab={character: number for number, character in enumerate(characters)},
            merges=[],
            unk_token=UNKNOWN_CHARACTER,
            fuse_unk=False,
        )
    )
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=block_size,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


if __name__ == "__main__":
    main()
