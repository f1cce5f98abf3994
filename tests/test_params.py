import inspect
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from docs.parameters import page
from minilm import ModelConfig, generate, generate_samples, stream
from minilm.errors import InputError
from minilm.generation.config import Sampling
from minilm.params import STAGES, SampleParams, TrainParams, allowed, default_text, load_params

ROOT = Path(__file__).parent.parent
FILE = ROOT / "params.yaml"


def problems(**overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_params(FILE, overrides)
    return str(caught.value).splitlines()


def test_shipped_file_holds_every_default():
    for part in load_params(FILE):
        assert part == type(part)()


def test_every_key_has_one_default():
    for field in fields(ModelConfig):
        if field.name != "vocab_size":
            assert TrainParams.model_fields[field.name].default == field.default
    for key, default in asdict(Sampling()).items():
        assert SampleParams.model_fields["sample_seed" if key == "seed" else key].default == default
        for function in (generate, stream, generate_samples):
            assert inspect.signature(function).parameters[key].default == default


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learning_rate", "3e-4", 0.0003),
        ("learning_rate", "5e-05", 0.00005),
        ("allow_fallback", "yes", True),
        ("allow_fallback", "no", False),
        ("prompt", "12", "12"),
        ("prompt", "yes", "yes"),
        ("prompt", "null", "null"),
        ("steps", "12", 12),
        ("eval_context", "7", 7),
        ("top_k", "9999", 9999),
    ],
)
def test_the_schema_decides_each_type(tmp_path, key, text, value):
    changed = re.sub(rf'(?m)^{key}: *("[^"]*"|\S+)', f"{key}: {text}", FILE.read_text())
    (tmp_path / "params.yaml").write_text(changed)
    params = load_params(tmp_path / "params.yaml")
    found = next(getattr(part, key) for part in params if hasattr(part, key))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("steps", "abc"),
        ("steps", "null"),
        ("steps", ""),
        ("steps", "0"),
        ("embed_dim", "-4"),
        ("embed_dim", "99999999"),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("learning_rate", "0"),
        ("allow_fallback", "maybe"),
        ("activation", "swish"),
        ("holdout_fraction", "0.5"),
        ("prompt", ""),
        ("temperature", "-1"),
        ("device", "tpu"),
        ("eval_context", "many"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(key, text):
    (line,) = problems(**{key: text})
    assert f"{key}: {text!r} is not allowed" in line
    assert allowed(key) in line


def test_all_problems_are_listed_at_once():
    lines = problems(tempratur="1", steps="x", embed_dim="130", eval_context="128")
    assert len(lines) == 4
    assert "did you mean temperature?" in lines[0]
    assert "steps: 'x'" in lines[1]
    assert "embed_dim: 130 is not divisible by num_heads, 4" in lines[2]
    assert "eval_context: 128 must be below block_size, 128" in lines[3]
    (line,) = problems(warmup_steps="201")
    assert "warmup_steps: 201 must be at most steps, 200; lower it too, to 20, say" in line
    assert line.startswith(f"{FILE} with the values given: ")  # the file itself has no such value


def test_missing_key_broken_yaml_and_missing_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text().replace("\nsteps:", "\n# steps:"))
    with pytest.raises(InputError, match="steps: missing; its default is 200"):
        load_params(path)
    path.write_text("a: [1\nb: 2")
    with pytest.raises(InputError, match="not readable as YAML"):
        load_params(path)
    path.write_text(FILE.read_text() + "steps: 5\n")
    with pytest.raises(InputError, match=r'params.yaml: found duplicate key "steps" with value "5"'):
        load_params(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="key: value"):
        load_params(path)
    with pytest.raises(InputError, match="no such file"):
        load_params(tmp_path / "none.yaml")


def test_rules_between_keys_hold_for_library_users_too():
    with pytest.raises(ValueError, match="not divisible"):
        TrainParams(embed_dim=10, num_heads=4)


def test_the_table_in_the_documents_says_what_the_schema_says():
    text = (ROOT / "docs/parameters.md").read_text()
    assert text == page()  # python -m docs.parameters > docs/parameters.md
    for stage in STAGES.values():
        for key, field in stage.model_fields.items():
            assert f"| `{key}` | `{default_text(key)}` | {field.description} | {allowed(key)} |" in text
    assert text.count("\n| `") == sum(len(stage.model_fields) for stage in STAGES.values())
