"""The real `dvc repro` in a clone with tiny parameters."""

import json
import re
import sys

import mlflow
import pytest
import yaml

from conftest import TINY, stages_run
from minilm.params import FIELDS, STAGES

ALL = set(STAGES)
OUTS = ("data/raw", "data/encoded", "models/minilm", "reports")


def snapshot(project) -> dict[str, bytes]:
    """Every file that the stages wrote."""
    files = (p for out in OUTS for p in sorted((project.folder / out).rglob("*")) if p.is_file())
    return {str(p.relative_to(project.folder)): p.read_bytes() for p in files}


def out_hashes(project) -> dict[str, str]:
    lock = yaml.safe_load(project.read("dvc.lock"))["stages"]
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}


def test_without_network_it_trains_on_the_sample_and_says_so_in_every_stage(project):
    assert stages_run(project.first_output) == ALL
    for stage in ALL:
        assert f"{stage}: WARNING: wikitext-2 could not be downloaded" in project.first_output
    assert "dvc repro -f download" in project.first_output
    assert "BUNDLED SAMPLE TEXT" in project.read("reports/samples.txt")
    assert json.loads(project.read("data/raw/source.json"))["origin"] == "sample"
    assert set(json.loads(project.read("reports/metrics.json"))) == {
        "test_loss",
        "test_bits_per_char",
        "test_perplexity",
        "test_word_perplexity",
        "test_accuracy",
        "test_top5_accuracy",
        "test_calibration_error",
        "unknown_char_rate",
        "unigram_loss",
        "ngram_loss",
    }
    assert (
        project.read("reports/loss.csv").splitlines()[0] == "step,train_loss,val_loss,learning_rate,grad_norm"
    )
    assert project._git("status", "--porcelain") == ""


def test_its_run_has_everything_and_the_model_loads(project):
    run = project.mlflow_runs()[-1]
    assert run.info.status == "FINISHED"
    assert run.data.params | TINY == run.data.params
    assert set(FIELDS) - {"device"} <= run.data.params.keys()
    assert run.data.metrics | json.loads(project.read("reports/metrics.json")) == run.data.metrics
    card = json.loads(project.read("models/minilm/config.json"))
    tags = run.data.tags
    assert tags["model_sha256"] == card["sha256"]["model.safetensors"]
    assert tags["data_sha256"] == card["data"]["sha256"]
    assert (tags["data_source"], tags["is_sample_text"]) == ("sample", "true")
    assert len(tags["git_commit"]) == 40
    client = project.client()
    for metric in ("train_loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, metric)] == [2, 4]
    stored = {file.path for file in client.list_artifacts(run.info.run_id, "reports")}
    assert stored == {f"reports/{path.name}" for path in (project.folder / "reports").glob("[!.]*")}
    kept = sorted(file.path for file in client.list_artifacts(run.info.run_id, "history"))
    assert re.fullmatch(r"history/evaluate-[0-9a-f]{8} history/sample-[0-9a-f]{8}", " ".join(kept))
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    loaded = mlflow.pyfunc.load_model(model.artifact_location)
    (text,) = loaded.predict(["The "], params={"max_new_tokens": 5, "temperature": 0.0})
    assert text == project.main("--generate", "--temperature", "0", "--max_new_tokens", "5").splitlines()[-2]


def test_the_pages_show_the_run_in_a_browser(project, open_page):
    tab = open_page(project.folder / "reports" / "report.html")
    metrics = json.loads(project.read("reports/metrics.json"))
    text = tab.inner_text("body")
    assert f"{metrics['test_bits_per_char']:.3f}" in text
    assert f"{metrics['ngram_loss']:.3f}" in text
    assert "BUNDLED SAMPLE TEXT" in text
    assert "-S embed_dim=16" in text
    sample = project.read("reports/samples.txt").split("---\n")[1].splitlines()[0]
    assert sample in text
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 300)")
    tab.click("text=The explorer")
    tab.wait_for_url("**/explorer.html")  # and until the page has loaded
    written = json.loads(project.read("reports/samples.json"))["samples"][0]
    asked = "{prompt: 'The ', maxNewTokens: 10, temperature: 0.8, topK: 50, topP: 1, minP: 0, seed: 1337}"
    assert tab.evaluate(f"minilm.generate({asked})") == written
    assert tab.evaluate("data.models[0].film.map(frame => frame.step)") == [1, 2]  # of 4 steps
    tab.go_back()
    tab.click("text=Surprisal, character by character")
    tab.wait_for_url("**/surprisal.html")
    assert "Mean surprisal" in tab.inner_text("body")
    assert tab.problems == []


def test_dvc_plots_work_without_network(project, open_page):
    project.dvc("plots", "diff", "HEAD")
    tab = open_page(project.folder / "dvc_plots" / "index.html")
    pictures = {path.stem for path in (project.folder / "reports").glob("*.png")}
    assert len(pictures) == 5
    shown = tab.evaluate("[...document.images].filter(i => i.naturalWidth > 300).map(i => i.src)")
    assert all(any(f"reports_{name}.png" in source for source in shown) for name in pictures)
    assert "need the network" in tab.inner_text("body")
    assert not any("vegaEmbed" in problem for problem in tab.problems)


def test_the_command_line_imports_nothing_heavy_but_torch(project):
    code = (
        "import runpy, sys; sys.argv[1:] = ['--generate', '--max_new_tokens', '1']; "
        "runpy.run_path('main.py', run_name='__main__'); print(*sys.modules)"
    )
    modules = set(project.run(sys.executable, "-c", code).stdout.splitlines()[-1].split())
    assert "torch" in modules
    assert not modules & {"mlflow", "datasets", "dvc", "matplotlib", "jinja2", "pandas", "requests"}


def test_nothing_changed_nothing_runs(project):
    assert stages_run(project.dvc("repro")) == set()


def test_forced_again_it_gives_the_same_bytes(fresh):
    before = out_hashes(fresh)
    assert stages_run(fresh.dvc("repro", "--force")) == ALL
    assert out_hashes(fresh) == before


def test_changed_code_reruns_only_who_uses_it(fresh):
    for file, stages in (("generation/sampling.py", {"sample"}), ("report/templates/style.css", {"report"})):
        path = fresh.folder / "minilm" / file
        path.write_text(path.read_text() + "\n")
        assert stages_run(fresh.dvc("repro")) - {"report"} == stages - {"report"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embed_dim": "18", "num_heads": "4"}, "embed_dim: 18 is not divisible by num_heads, 4"),
        ({"temperature": "-1"}, "temperature: '-1' is not allowed"),
        ({"dataset": "missing.txt"}, "there is no text file or folder 'missing.txt'"),
        ({"holdout_fraction": "0.2"}, "allow_fallback: true"),
        ({"dataset": "short.txt"}, "block_size: 32 needs a training split of at least 34 characters"),
        ({"dataset": "broken.txt"}, "not UTF-8: byte 0xff at offset 3"),
        ({"dataset": "splits"}, "of splits the test split has 1 character(s)"),
        ({"dataset": "short.txt", "block_size": "4"}, "of short.txt the validation split has 1 character(s)"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_the_outputs(fresh, values, message):
    (fresh.folder / "splits").mkdir(exist_ok=True)
    for split, length in (("train", 100), ("validation", 2), ("test", 1)):
        (fresh.folder / "splits" / f"{split}.txt").write_text("x" * length)
    (fresh.folder / "short.txt").write_text("x" * 19)
    (fresh.folder / "broken.txt").write_bytes(b"abc\xff")
    before = snapshot(fresh)
    fresh.set(**values)
    if "allow_fallback" in message:
        fresh.set(allow_fallback="false")
    output = fresh.dvc("repro", ok=False)
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in output
    assert snapshot(fresh) == before


def test_a_prompt_of_unknown_characters_is_named_but_costs_no_run(fresh):
    fresh.set(prompt='"日 x"')
    assert "the model never saw '日' (U+65E5)" in fresh.dvc("repro")
    assert "the model never saw '日' (U+65E5)" in fresh.read("reports/samples.txt")
