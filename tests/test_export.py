import itertools
import os
import random
import re
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from exporting import CHARACTERS, CONFIG, SOURCE, save_model
from minilm.deploy.huggingface import export, main
from minilm.model.positions import POSITIONS
from transformers import AutoModelForCausalLM, AutoTokenizer

from minilm import ModelConfig, checkpoint, generate
from minilm.errors import InputError
from minilm.model.gpt import ACTIVATIONS, NORMALIZATIONS
from minilm.params import load_params, load_recipe

ROOT = Path(__file__).parent.parent
SHAPES = [
    dict(zip(("position", "activation", "normalization", "qk_norm", "biases"), values, strict=True))
    for values in itertools.product(POSITIONS, ACTIVATIONS, NORMALIZATIONS, (False, True), (False, True))
]


def architecture(position, activation, normalization, qk_norm, biases) -> str | None:
    """What a shape must become, told by cases."""
    gated = activation == "swiglu"
    if position in ("learned", "sinusoidal") and normalization == "layernorm" and not gated and not qk_norm:
        return "GPT2LMHeadModel"
    if position == "rope" and normalization == "layernorm" and not gated:
        return "PersimmonForCausalLM"
    if position == "rope" and normalization == "rmsnorm" and gated and not qk_norm:
        return "LlamaForCausalLM"
    if position == "rope" and normalization == "rmsnorm" and gated and not biases:
        return "Qwen3ForCausalLM"
    return None


pytestmark = pytest.mark.usefixtures("elsewhere")
MAPPED = [shape for shape in SHAPES if architecture(**shape)]
UNMAPPED = [shape for shape in SHAPES if not architecture(**shape)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its tokenizer, its folder, and the folder of what it was exported to."""
    base = tmp_path_factory.mktemp("my models")
    model, tokenizer = save_model(base / "model", CONFIG)
    export(base / "model", base / "out")
    return model, tokenizer, base / "model", base / "out"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line; returns the one line of its error, or what it printed."""

    def command(*arguments, error=True):
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        if not error:
            main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as caught:
            main()
        message = caught.value.code
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return command


@pytest.mark.parametrize("shape", MAPPED, ids=lambda shape: "-".join(map(str, shape.values())))
def test_logits_are_equal_in_every_shape_that_maps(shape, tmp_path):
    ids = torch.randint(0, CONFIG.vocab_size, (3, 25), generator=torch.Generator().manual_seed(1))
    for tied in (False, True):
        config = replace(CONFIG, **shape, tied_embeddings=tied, attention_dropout=0.1, mlp_dropout=0.2)
        model, _ = save_model(tmp_path / f"model{tied}", config)
        export(tmp_path / f"model{tied}", tmp_path / f"out{tied}")
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / f"out{tied}")
        assert type(stock).__name__ == architecture(**shape)
        assert stock.config.tie_word_embeddings == tied
        with torch.no_grad():
            for time in (1, 7, 25):
                expected = model(ids[:, :time])
                torch.testing.assert_close(stock(ids[:, :time]).logits, expected, atol=1e-4, rtol=0)
                assert expected.std() > 0.3


def test_every_other_shape_is_refused_and_nothing_is_written(tmp_path):
    assert len(MAPPED) + len(UNMAPPED) == 128
    for number, shape in enumerate(UNMAPPED):
        save_model(tmp_path / str(number), replace(CONFIG, **shape))
        with pytest.raises(InputError, match="map to no stock architecture"):
            export(tmp_path / str(number), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"position": "alibi"},
            "GPT-2 wants position learned or sinusoidal, not alibi; Persimmon wants position rope, not alibi",
        ),
        (
            {"position": "rope", "activation": "swiglu", "normalization": "rmsnorm", "qk_norm": True},
            "Llama wants qk_norm false, not true; Qwen3 wants biases false, not true",
        ),
        (
            {"activation": "swiglu", "logit_softcap": 30.0},
            "GPT-2 wants activation relu or gelu or relu2, not swiglu, and logit_softcap 0.0, not 30.0",
        ),
    ],
)
def test_what_does_not_map_is_named_with_what_would(settings, expected, tmp_path, command):
    save_model(tmp_path / "model", replace(CONFIG, **settings))
    message = command(tmp_path / "model", tmp_path / "out", "--format", "transformers")
    assert message == (
        f"error: {tmp_path / 'model'}: its settings map to no stock architecture of transformers: {expected}"
    )
    assert not (tmp_path / "out").exists()


def test_the_classic_recipe_maps_and_of_the_modern_one_only_the_softcap_does_not(tmp_path):
    for recipe in ("classic", "modern"):
        params = load_params(ROOT / "params.yaml", load_recipe(ROOT / "recipes" / f"{recipe}.yaml")).train
        shape = {key: getattr(params, key) for key in asdict(CONFIG) if key != "vocab_size"}
        save_model(tmp_path / recipe, ModelConfig(CONFIG.vocab_size, **shape))
    assert export(tmp_path / "classic", tmp_path / "out").startswith("GPT-2")
    with pytest.raises(InputError, match=r"transformers: Persimmon wants logit_softcap 0.0, not 15.0$"):
        export(tmp_path / "modern", tmp_path / "out 2")


def test_dropout_is_that_of_training(tmp_path):
    config = replace(CONFIG, attention_dropout=0.1, mlp_dropout=0.2)
    save_model(tmp_path / "gpt2", config)
    export(tmp_path / "gpt2", tmp_path / "gpt2 out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2 out").config
    assert (stock.attn_pdrop, stock.resid_pdrop, stock.embd_pdrop) == (0.1, 0.2, 0.0)
    save_model(tmp_path / "persimmon", replace(config, position="rope"))
    export(tmp_path / "persimmon", tmp_path / "persimmon out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "persimmon out").config
    assert (stock.attention_dropout, stock.hidden_dropout) == (0.1, 0.2)


def texts():
    yield from (
        "",
        " ",
        "  The  fox \n\n jumps\t\tover \r\n",
        "The fox , the dog . Isn 't it ? do n't",  # what a clean-up of spaces would change
        "▁The Ġquick Ċ ##s @@ <s></s>[UNK]<|endoftext|><unk>",
        "e\u0301 é ﬁ İ \u0131 \u00a0\u3000\u200b 한 👩\u200d🚀 \ufe0f\x00",
        "unknown: Ω≈ç√ 👾 \u0327 \u2028\u0085 \ufffd\ufeff",
        "Ω",
    )
    generator = random.Random(3)
    for length in (2, 30, 3000):
        yield "".join(generator.choices(CHARACTERS, k=length))
        # Any character but surrogates, which stand alone in no text.
        yield "".join(chr((0xE000 + generator.randrange(0x10F800)) % 0x110000) for _ in range(length))
    yield (ROOT / "minilm" / "sample_text" / "train.txt").read_text(encoding="utf-8")


def test_the_tokenizer_reads_and_writes_characters_as_ours_does(exported):
    _, ours, _, out = exported
    theirs = AutoTokenizer.from_pretrained(out)
    assert len(theirs) == ours.vocab_size
    for text in texts():
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == theirs.encode(text) == ids
        assert theirs.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
        if not ours.unknown_characters(text):
            assert theirs.decode(ids) == text
    assert theirs.convert_ids_to_tokens([0]) == ["\ufffd"]


def test_greedy_text_is_ours_up_to_the_end_of_the_window(exported):
    model, ours, _, out = exported
    stock, theirs = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for prompt in ("T", "The fox", "dog. "):
        answer = stock.generate(**theirs(prompt, return_tensors="pt"), do_sample=False)[0]
        assert len(answer) == CONFIG.block_size
        expected = generate(model, ours, prompt, CONFIG.block_size - len(prompt), temperature=0)
        assert theirs.decode(answer) == expected


def test_generate_never_draws_the_unknown_character(tmp_path):
    model, tokenizer = save_model(tmp_path / "model", CONFIG)
    with torch.no_grad():
        model.token_embedding.weight[0] = 30 * model.final_norm.bias.sign()  # it would be drawn always
    checkpoint.save(tmp_path / "model", model, tokenizer, {}, SOURCE, {})
    export(tmp_path / "model", tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.ones(4, 1, dtype=torch.long)
    assert (stock(ids).logits.argmax(-1) == 0).all()
    assert (stock.generate(ids, attention_mask=torch.ones_like(ids)) != 0).all()


def test_the_cards_code_runs_where_there_is_no_minilm(exported):
    _, ours, _, out = exported
    program = (
        "import re, sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'minilm': raise ImportError('there is no minilm here')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "exec(re.search(r'```python\\n(.*?)```', open('README.md').read(), re.DOTALL)[1])\n"
        "print('ids', tokenizer('The\\n Ω')['input_ids'])\n"
        "print(type(model).__module__, type(tokenizer).__module__)\n"
        "try: import minilm\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=out, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("The ")
    *_, ids, modules, blocked = done.stdout.splitlines()
    assert ids == "ids " + str(ours.encode("The\n Ω").tolist())
    assert all(module.startswith("transformers.") for module in modules.split())
    assert blocked == "there is no minilm here"
    assert not list(out.glob("*.py"))


def test_the_same_model_gives_the_same_files(exported, tmp_path):
    _, _, folder, out = exported
    (tmp_path / "again").mkdir()  # an empty folder is taken
    export(folder, tmp_path / "again")
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for file in out.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_command_works_from_any_folder(exported):
    folder = os.path.relpath(exported[2])
    done = subprocess.run(
        [sys.executable, "-m", "minilm.deploy.huggingface", folder, "deep/er/out", "--format", "transformers"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    parameters = f"{exported[0].num_parameters:,} parameters"
    assert done.stdout == (
        f"export: deep/er/out: GPT-2 with {parameters}; README.md with no metrics, for MLflow has none of "
        "this model\n"
    )
    assert done.stderr == ""
    assert AutoTokenizer.from_pretrained("deep/er/out").decode([0]) == "\ufffd"


def test_an_out_that_is_in_use_is_refused_and_stays(exported, tmp_path, command):
    *_, folder, out = exported
    before = {file: file.read_bytes() for file in (*folder.iterdir(), *out.iterdir())}
    assert "name a new folder or an empty one" in command(folder, out)
    assert "is in the model folder" in command(folder, folder)
    assert "is in the model folder" in command(folder, folder / "transformers")
    (tmp_path / "file").write_text("x")
    assert "name a new folder or an empty one" in command(folder, tmp_path / "file")
    assert str(tmp_path / "file") in command(folder, tmp_path / "file" / "out")
    assert {file: file.read_bytes() for file in (*folder.iterdir(), *out.iterdir())} == before
    assert (tmp_path / "file").read_text() == "x"


def test_a_model_folder_that_is_missing_or_damaged_is_one_sentence(tmp_path, command):
    assert "config.json is missing" in command(tmp_path / "nothing", tmp_path / "out")
    save_model(tmp_path / "model", CONFIG)
    with (tmp_path / "model" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "model.safetensors is damaged" in command(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_transformers_the_error_says_how_to_get_it(exported, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert command(exported[2], tmp_path / "out").endswith("-e '.[export]'")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(exported, tmp_path):
    size = (exported[3] / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-m", "minilm.deploy.huggingface", exported[2], tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: [^\n]*File too large[^\n]*\n", done.stderr)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert not list(tmp_path.glob(".unfinished-*"))


def test_another_format_is_refused(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", str(exported[2]), str(tmp_path / "out"), "--format", "gguf"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "transformers" in capsys.readouterr().err
