import json
import shutil
from dataclasses import asdict

import pytest
import torch

import minilm
from minilm import CharTokenizer, MiniGPT, checkpoint
from minilm.data.provenance import Source
from minilm.errors import InputError
from minilm.files import read_table, sha256_of

SOURCE = Source("book.txt", "file:book.txt", None, {"train": 9, "validation": 1, "test": 1}, "0" * 64)


@pytest.fixture
def folder(tiny_model, tmp_path):
    checkpoint.save(tmp_path / "model", *tiny_model, {"steps": 3}, SOURCE, {"threads": 2})
    return tmp_path / "model"


def test_what_was_saved_is_loaded(tiny_model, folder):
    model, tokenizer = minilm.load(folder)
    ids = torch.from_numpy(tokenizer.encode("the fox").astype("int64"))[None]
    assert torch.equal(model(ids), tiny_model[0](ids))
    assert tokenizer.characters == tiny_model[1].characters
    assert not model.training
    info = checkpoint.read_info(folder)
    assert (info.params, info.data, info.environment) == ({"steps": 3}, SOURCE, {"threads": 2})
    assert info.model_sha256 == sha256_of(folder / "model.safetensors")


def test_equal_models_give_equal_bytes(tiny_model, folder, tmp_path):
    checkpoint.save(tmp_path / "again", *tiny_model, {"steps": 3}, SOURCE, {"threads": 2})
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_missing_or_damaged_parts_are_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{name} is damaged"):
        minilm.load(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing; train a model"):
        minilm.load(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="is missing"):
        minilm.load(folder)


@pytest.mark.parametrize(
    ("part", "fields", "said"),
    [
        ("model", {"rope_base": 10000}, "rope_base"),
        ("model", {"position": "xpos"}, "position 'xpos' is none of"),
        ("model", {"embed_dim": 0}, "embed_dim"),
        ("data", {"license": "mit"}, "license"),
    ],
)
def test_a_config_of_another_version_says_so(folder, part, fields, said):
    config = folder / "config.json"
    content = json.loads(config.read_text())
    content[part] |= fields
    config.write_text(json.dumps({**content, "new": 1}))
    with pytest.raises(InputError, match=rf"model: config\.json was written by another version .*{said}"):
        minilm.load(folder)
    del content[part]
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"another version of MiniLM: KeyError: '{part}'"):
        minilm.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1", b"\xff\xfe", b"[]", b"3"])
def test_whatever_a_stage_wrote_is_named_when_it_is_damaged(tmp_path, content):
    path = tmp_path / "source.json"
    SOURCE.save(path)
    assert Source.load(path) == SOURCE
    path.write_bytes(content)
    for read in (Source.load, read_table):
        with pytest.raises(
            InputError, match=rf"{path} (is damaged|was written by another version).*dvc repro"
        ):
            read(path)


def test_a_source_of_another_version_says_so(tmp_path):
    (tmp_path / "source.json").write_text(json.dumps(asdict(SOURCE) | {"license": "mit"}))
    with pytest.raises(InputError, match=r"source\.json was written by another version of MiniLM: .*license"):
        Source.load(tmp_path / "source.json")


def test_a_table_that_is_cut_off_is_damaged(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("kind,loss\nspace,1.5\n")
    assert read_table(path) == {"kind": ["space"], "loss": [1.5]}
    for end in ("letter", "letter,", "letter,3e-", "letter,2,1", "\0\0"):
        path.write_text("kind,loss\nspace,1.5\n" + end)
        with pytest.raises(InputError, match=r"a\.csv is damaged: .*; `dvc repro` makes it again"):
            read_table(path)


def test_a_part_of_another_model_is_refused(folder, tiny_model, tmp_path):
    other = MiniGPT(tiny_model[0].config, seed=99)
    checkpoint.save(tmp_path / "other", other, tiny_model[1], {}, SOURCE, {})
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or of another model"):
        minilm.load(folder)


def test_parts_that_do_not_fit_are_refused_even_with_the_right_digests(folder):
    config = folder / "config.json"

    def change(**values):
        content = json.loads(config.read_text())
        content["model"] |= values
        content["sha256"]["tokenizer.json"] = sha256_of(folder / "tokenizer.json")
        config.write_text(json.dumps(content))

    change(embed_dim=32)
    with pytest.raises(InputError, match=r"model\.safetensors does not fit config\.json"):
        minilm.load(folder)
    CharTokenizer("abc").save(folder / "tokenizer.json")
    change()
    with pytest.raises(InputError, match=r"tokenizer\.json has 4 ids"):
        minilm.load(folder)
