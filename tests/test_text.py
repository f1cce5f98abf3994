import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dvc.fs import localfs

from conftest import ROOT
from minilm.data.corpus import Corpus, open_corpus, read_text, sample_corpus
from minilm.data.tokenizer import UNKNOWN_CHARACTER, CharTokenizer
from minilm.errors import InputError
from minilm.files import SPLITS, all_or_nothing

TEXT = "naïve 東京 🦊 text,\nwith\ttabs and 🦊 again"


def opened(path) -> Corpus:
    return open_corpus(str(path), holdout_fraction=0.1, allow_fallback=False)


def texts(corpus: Corpus) -> dict[str, str]:
    return {split: "".join(pieces()) for split, pieces in corpus.splits.items()}


def test_round_trip_and_vocabulary():
    tokenizer = CharTokenizer.from_text(TEXT)
    assert tokenizer.characters == "".join(sorted(set(TEXT)))
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.uint8
    assert 0 not in ids
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(list(map(int, ids))) == TEXT
    assert tokenizer.vocab_size == len(set(TEXT)) + 1


def test_pieces_give_the_vocabulary_of_the_whole_and_rare_characters_are_left_out():
    assert CharTokenizer.from_pieces(iter(TEXT)).characters == CharTokenizer.from_text(TEXT).characters
    assert CharTokenizer.from_text("aaabbc", min_count=2).characters == "ab"
    with pytest.raises(InputError, match="lower min_char_count"):
        CharTokenizer.from_text("abc", min_count=2)


def test_unknown_characters_are_zero_and_named():
    tokenizer = CharTokenizer.from_text("abc")
    assert list(tokenizer.encode("axc\ufffd")) == [1, 0, 3, 0]
    assert tokenizer.decode([1, 0]) == "a" + UNKNOWN_CHARACTER
    assert tokenizer.unknown_characters("xaybx") == ["x", "y"]
    with pytest.raises(InputError, match="0 to 3"):
        tokenizer.decode([4])


@pytest.mark.parametrize(
    ("size", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)]
)
def test_smallest_type_that_holds_every_id(size, dtype):
    # Above the surrogates, so that every character is one that UTF-8 can hold.
    tokenizer = CharTokenizer("".join(map(chr, range(0x10000, 0x10000 + size))))
    assert tokenizer.dtype == dtype
    assert int(tokenizer.encode(tokenizer.characters[-1])[0]) == size


def test_saved_tokenizer_and_its_damage(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer = CharTokenizer.from_text(TEXT)
    tokenizer.save(path)
    assert CharTokenizer.load(path).characters == tokenizer.characters
    for damage in ("{", "[]", '{"characters": 3}', '{"characters": ""}', '{"characters": "ba"}'):
        path.write_text(damage)
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            CharTokenizer.load(path)


def test_own_file_is_split_without_loss(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT * 50, encoding="utf-8")
    found = texts(opened(path))
    length = len(TEXT) * 50
    assert "".join(found[split] for split in SPLITS) == TEXT * 50
    assert len(found["validation"]) == len(found["test"]) == int(length * 0.1)


def test_own_file_in_pieces_is_the_whole(tmp_path):
    path, end = tmp_path / "book.txt", "ü\r\nb🦊\rend\r\n".encode()
    for before in range(2**20 - len(end), 2**20):  # each byte of the end comes first in a piece
        path.write_bytes(b"\xef\xbb\xbf" + b"a" * (before - 3) + end)
        assert "".join(read_text(path)) == "a" * (before - 3) + "ü\nb🦊\nend\n"


@pytest.mark.parametrize(
    ("before", "bom"), [(0, b""), (1, b""), (7, b""), (1048575, b""), (4, b"\xef\xbb\xbf")]
)
def test_byte_that_is_not_utf8_is_given_with_its_offset(tmp_path, before, bom):
    path = tmp_path / "book.txt"
    path.write_bytes(bom + b"a" * before + b"\xe9xyz")
    with pytest.raises(InputError, match=f"byte 0xe9 at offset {before + len(bom):,};"):
        opened(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), r"looks like UTF-16; to convert it: iconv -f utf-16 -t utf-8 'a book.txt' >"),
        ("Blaise l'a dit à l'été".encode("latin1"), "looks like Latin-1 or another .* iconv -f latin1"),
        (b"a\0b", "NUL bytes"),
    ],
)
def test_other_encodings_are_named_with_what_converts_them(tmp_path, content, message):
    path = tmp_path / "a book.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        opened(path)


def test_odd_texts_are_read_as_they_are(tmp_path):
    path, every = tmp_path / "book.txt", "".join(map(chr, [*range(1, 13), *range(14, 0xD800)]))
    for text in (every * 2, " " * 100, "a" * 100, "no end"):
        path.write_bytes(text.encode())
        assert "".join(texts(opened(path)).values()) == text


def test_folder_of_texts(tmp_path):
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a.TXT").write_text("first")
    (tmp_path / "c.md").write_text("no text")
    (tmp_path / "._a.txt").write_bytes(b"\xff\0")
    for folder in ("d.txt", "sub", ".ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "e.txt").write_text(folder)
    assert "".join(texts(opened(tmp_path)).values()) == "first\nsecond\nd.txt\nsub"
    (tmp_path / "gone.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"gone\.txt is a link to a file that is not there"):
        opened(tmp_path)


def test_a_folder_is_read_as_far_as_dvc_hashes_it(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.txt").write_text("behind a link to a folder")
    (tmp_path / "c").write_text("behind a link to a file")
    (tmp_path / "text" / "a.txt").write_text("here")
    (tmp_path / "text" / "b").symlink_to("../other")
    (tmp_path / "text" / "c.txt").symlink_to("../c")
    hashed = {Path(path).name for path in localfs.find(str(tmp_path / "text"))}
    assert hashed == {"a.txt", "c.txt"}
    assert "".join(texts(opened(tmp_path / "text")).values()) == "here\nbehind a link to a file"


@pytest.mark.parametrize(
    "names", [SPLITS, ("training", "val", "Test"), ("wiki.train", "wiki.valid", "wiki.test")]
)
def test_folder_of_splits(tmp_path, names):
    for split, name in zip(SPLITS, names, strict=True):
        (tmp_path / f"{name}.txt").write_text(f"This is {split}.")
    corpus = opened(tmp_path)
    assert texts(corpus) == {split: f"This is {split}." for split in SPLITS}
    assert tuple(corpus.splits) == SPLITS  # the dataset's digest depends on their order


@pytest.mark.parametrize("names", ["train README", "train valid dev", "test book", "a/train b/train"])
def test_folder_of_splits_and_others_is_refused(tmp_path, names):
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text("Some text.")
    with pytest.raises(InputError, match=r"holds .*\.txt, .*; move or rename the others"):
        opened(tmp_path)


@pytest.mark.parametrize("blocks", [1, 3, 40])
def test_held_out_blocks_spread_over_the_text(tmp_path, blocks):
    # Each character says where it stands.
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 4000))) * 1000  # several pieces
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    corpus = open_corpus(str(path), holdout_fraction=0.2, allow_fallback=False, holdout_blocks=blocks)
    expected = dict.fromkeys(SPLITS, "")
    for block in range(blocks):
        part = text[len(text) * block // blocks : len(text) * (block + 1) // blocks]
        share = int(len(part) * 0.2)
        expected["train"] += part[: len(part) - 2 * share]
        expected["validation"] += part[len(part) - 2 * share : len(part) - share]
        expected["test"] += part[len(part) - share :]
    assert texts(corpus) == expected


def test_texts_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.txt file"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"no text file or folder 'wikitext-4'.*take wikitext-2 or"):
        opened("wikitext-4")
    with pytest.raises(InputError, match="not of the form hub:owner/name"):
        opened("hub:nothing")


def test_bundled_sample_is_there_in_wikitext_format():
    found = texts(sample_corpus())
    assert sum(len(text.encode()) for text in found.values()) >= 60_000
    for text in found.values():
        assert "\n = " in text
        assert " = = " in text
    # What a model is tested on must not stand in what it is trained on.
    lines = {line for line in found["train"].splitlines() if len(line) > 60}
    assert not lines & {line for split in ("validation", "test") for line in found[split].splitlines()}


def test_all_or_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")

    def write(fail: bool):
        with all_or_nothing(tmp_path / "out") as new:
            (new / "a").write_text("new")
            (new / "b").write_text(json.dumps(1))
            if fail:
                raise InputError("no")

    with pytest.raises(InputError):
        write(fail=True)
    assert [(p.name, p.read_text()) for p in (tmp_path / "out").iterdir()] == [("a", "old")]
    write(fail=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "new"


def test_what_a_killed_process_left_is_ignored_by_git_and_removed(tmp_path):
    kill = (
        "from minilm.files import *; import os\nwith all_or_nothing('models/minilm'): os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", kill], cwd=tmp_path, env=environment, check=False)
    (left,) = (tmp_path / "models").glob(".unfinished-*")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    (left / "a").touch()
    (tmp_path / "params.unfinished").touch()
    untracked = ["git", "ls-files", "--others", "--exclude-standard"]
    assert subprocess.check_output(untracked, cwd=tmp_path, text=True) == ".gitignore\n"

    for folder in (
        tmp_path / ".unfinished-x",
        tmp_path / ".checkpoints" / "x",
        tmp_path / "data" / "raw",
    ):
        folder.mkdir(parents=True)
    subprocess.run(["make", "--file", ROOT / "Makefile", "clean"], cwd=tmp_path, check=True)
    rest = sorted(path.name for path in tmp_path.iterdir() if path.name != ".git")
    assert rest == [".gitignore", "data", "models"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["minilm"]
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data" / "raw"]
