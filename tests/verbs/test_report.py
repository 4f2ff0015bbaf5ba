"""The report on runs: the table, the page, the figures for slides."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from accessibility import unreachable, violations
from conftest import LIMIT, environ
from PIL import Image

from vqa_repro import report
from vqa_repro.data.types import Example, Split
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.evaluation import examples
from vqa_repro.evaluation.titles import model_title, procedure
from vqa_repro.models.network import load_model
from vqa_repro.recipe import load_recipe, recipe_names
from vqa_repro.reporting import charts, commands, comparison, contrasts, figures, tables
from vqa_repro.reporting import html as page
from vqa_repro.reporting.comparison import RunSummary
from vqa_repro.run import Run, create_run, open_run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import write_json
from vqa_repro.utils.messages import LANGUAGES, messages

VOCABULARY = Vocabulary(("<pad>", "<unk>", "what"), ("chair", "table"))


def finished(folder: Path, seed: int, overall: float, **changes: object) -> Path:
    recipe = load_recipe("san-2-lstm-daquar-reduced", {"training.seed": seed, **changes})
    made_by = {"backbone": "vgg19", "weights_sha256": "abc123"}
    features = {"made_by": made_by, "channels": 512, "scale": 1.0, "fingerprint": "f"}
    run = Run(folder / f"{overall}", recipe, VOCABULARY, features)
    create_run(run, {"device": "a machine", "packages": {"torch": "9.9"}})
    metrics = {"data": "daquar-reduced", "split": "test", "questions": 290, "seed": seed}
    metrics |= {
        "seconds": 120.0,
        "epochs": 20,
        "overall": overall,
        "wups_0.9": min(overall + 5, 100.0),
    }
    write_json(run.folder / "metrics.json", metrics)
    return run.folder


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]


def test_nearly_all_right_does_not_read_as_all(tmp_path: Path) -> None:
    runs = [
        RunSummary.load(finished(tmp_path, seed, right))
        for seed, right in enumerate((99.96, 99.98))
    ]
    assert rows(tables.markdown(runs))[2][3] == "**99.97 ± 0.01** (+53.8)"


def test_a_cnn_of_the_models_own_is_described_and_counted(finished: Path) -> None:
    text = tables.markdown([RunSummary.load(finished)])
    assert "backbone" not in text and "32 pixels a side" in text
    network = load_model(open_run(finished), torch.device("cpu"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert contrasts.weights_in(finished) == parameters


def test_seeds_share_a_row_and_changed_recipes_have_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [finished(tmp_path, seed, 45.0 + seed) for seed in range(3)]
    runs.append(finished(tmp_path, 0, 40.0, **{"model.input_dropout": 0.0}))
    assert report.main([*map(str, runs), "--markdown"]) == 0
    output = capsys.readouterr().out
    assert "### daquar-reduced, test (290 questions)" in output
    _, _, same, changed = rows(output)
    assert same[:3] == ["SAN (2 layers, LSTM) on DAQUAR-REDUCED", "3", "46.2"]
    assert same[3] == "**46.0 ± 1.0** (-0.2)"
    assert same[4] == "51.0 ± 1.0 (51.2)"
    assert changed[0] == "SAN (2 layers, LSTM) on DAQUAR-REDUCED, model.input_dropout=0.0"
    assert changed[1] == "1" and changed[3] == "**40.0** (-6.2)"
    assert "a machine, torch 9.9" in output and "weights_sha256 abc123" in output


def test_the_report_is_written_whole_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    run = finished(tmp_path, 0, 45.0)
    assert report.main([str(run), "--markdown", "--out", str(out)]) == 0
    assert len(rows(out.read_text())) == 3


def test_a_link_a_pipe_and_a_device_are_written_to_not_replaced(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    command = [str(run), "--markdown", "--out"]
    (tmp_path / "disk").mkdir()
    for target in ("there.md", "missing.md"):
        out = tmp_path / f"to-{target}"
        out.symlink_to(Path("disk", target))
        if target == "there.md":
            out.write_text("old")
        assert report.main([*command, str(out)]) == 0
        assert out.is_symlink() and len(rows(out.read_text())) == 3
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["missing.md", "there.md"]
    out = tmp_path / "pipe"
    os.mkfifo(out)
    with ThreadPoolExecutor() as reader:
        text = reader.submit(out.read_text)
        assert report.main([*command, str(out)]) == 0
        assert out.is_fifo() and len(rows(text.result())) == 3
    terminal, device = pty.openpty()
    try:
        (tmp_path / "device").symlink_to(os.ttyname(device))
        assert report.main([*command, str(tmp_path / "device")]) == 0
        assert b"daquar-reduced" in os.read(terminal, 1 << 16)  # the first line
    finally:
        os.close(terminal)
        os.close(device)
    (tmp_path / "loop").symlink_to("loop")
    for bad, why in [("disk", "Is a directory"), ("loop", "Too many levels"), ("run/x", "No such")]:
        with pytest.raises(UserError, match=f"{bad}: cannot be written: {why}"):
            report.main([*command, str(tmp_path / bad)])


def test_a_table_for_the_standard_output_is_added_to_the_log_of_a_job(tmp_path: Path) -> None:
    log = tmp_path / "all.txt"
    log.write_text("before\n")
    command = [sys.executable, "-m", "vqa_repro.report", str(finished(tmp_path, 0, 45.0))]
    command += ["--markdown", "--out", "/dev/stdout"]
    with log.open("a") as file:
        subprocess.run(command, env=environ(), stdout=file, check=True)
    text = log.read_text()
    assert text.startswith("before\n") and len(rows(text)) == 3
    assert text.endswith("table: /dev/stdout\n")


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path, 0, 45.0)
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"45\.0: not finished"):
        tables.markdown([RunSummary.load(folder)])


def test_hidden_answers_have_no_figure(tmp_path: Path) -> None:
    folder = finished(tmp_path, 0, 45.0)
    metrics = json.loads((folder / "metrics.json").read_text())
    shutil.copytree(folder, tmp_path / "hidden")
    write_json(tmp_path / "hidden" / "metrics.json", {**metrics, "overall": None})
    assert rows(tables.markdown([RunSummary.load(tmp_path / "hidden")]))[2][3] == ""


def test_the_kinds_of_questions_have_columns_as_in_the_papers(tmp_path: Path) -> None:
    runs = []
    for seed, number in enumerate((40.0, 42.0)):
        run = finished(tmp_path, seed, 45.0 + seed)
        metrics = json.loads((run / "metrics.json").read_text())
        metrics |= {"per_answer_type": {"number": number}, "prior": 12.25}
        write_json(run / "metrics.json", metrics)
        runs.append(RunSummary.load(run))
    head, _, row = rows(tables.markdown(runs))
    assert row[1 + head.index("number (published)")] == "41.0 ± 1.4"
    assert row[1 + head.index("most frequent answer, %")] == "12.2"  # no seed changes it


def test_types_may_have_any_name(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["per_answer_type"] = {"other": 40.0, "overall": 41.0, "seed": 42.0}
    metrics["per_question_type"] = {"other": 90.0, "data": 91.0, "questions": 92.0}
    write_json(run / "metrics.json", metrics)
    (group,) = comparison.group_runs([RunSummary.load(run)])
    for section in ("per_answer_type", "per_question_type"):
        for name, value in metrics[section].items():
            figure = group.figure(name, section)
            assert figure is not None and figure.mean == value, name
    head, _, row = rows(tables.markdown(group.runs))
    shown = dict(zip(head, row[1:] if len(row) > len(head) else row, strict=False))
    assert "40.0" in shown.values() and "42.0" in shown.values()
    report.write([run], tmp_path / "r.html", "en", None)
    page_text = (tmp_path / "r.html").read_text()
    assert all(f"{value:.1f}" in page_text for value in (90, 91, 92))


def test_a_run_named_twice_is_one_seed(tmp_path: Path) -> None:
    run, link = finished(tmp_path, 0, 45.0), tmp_path / "latest"
    link.symlink_to(run)
    runs, _ = report.load_runs([run, tmp_path / "." / run.name, link])
    assert [summary.run.folder for summary in runs] == [run]


@pytest.mark.parametrize("features", ["/scratch/photos.safetensors", "/scratch/photos"])
def test_the_place_of_the_features_is_no_part_of_the_title(tmp_path: Path, features: str) -> None:
    run = finished(tmp_path, 0, 45.0, **{"data.features": features})
    assert "/scratch" not in tables.markdown([RunSummary.load(run)])


def test_a_model_without_images_names_no_features(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    features = json.loads((run / "features.json").read_text())
    write_json(run / "features.json", {**features, "made_by": {"backbone": "no picture"}})
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"]["features"] = "none"
    write_json(run / "recipe.json", recipe)
    assert "Features" not in tables.markdown([RunSummary.load(run)])


def log(folder: Path, epochs: int, *, of: int = 20) -> None:
    lines: list[dict[str, Any]] = [
        {"type": "step", "step": 10 * n, "epoch": n / 10, "loss": 3.0, "accuracy": 2.0}
        for n in range(1, 8)
    ]
    lines += [
        {"type": "epoch", "step": 100 * n, "epoch": n, "loss": 3 / n, "accuracy": 40.0 + n}
        | {"validation_accuracy": 30.0 + n}
        for n in range(1, epochs + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def add_gallery(folder: Path, wrong: int = 3, question: str = "what is it?") -> None:
    """Write a gallery: wrong answers with attention of SAN and HieCoAtt, and a right one."""
    maps = {"hop 1": [0.1, 0.2, 0.3, 0.4], "phrase/image": [0.25] * 4, "phrase/question": [0.3] * 4}
    asked = [
        msgspec.to_builtins(
            examples.ExampleRecord(
                n, f"{question} {n}", ["what", "is", "it", "?"], ["cat"], "cat", float(n == 0),
                0.25, [("cat" if n == 0 else "dog", 0.5)], maps, "1.jpg",
            )
        )
        for n in range(wrong + 1)
    ]  # fmt: skip
    errors = list(range(1, wrong + 1))
    content = {"lists": {"best": [0], "errors": errors}, "wrong": wrong, "asked": asked}
    (folder / "gallery.json").write_text(json.dumps(content))
    (folder / "gallery").mkdir()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "gallery" / "1.jpg")


def made(*runs: Path, language: str = "en") -> str:
    return page.page([RunSummary.load(run) for run in runs], language, None)


def unfinished(folder: Path, epochs: int) -> Path:
    run = finished(folder, 1, 99.0)
    (run / "metrics.json").unlink()
    log(run, epochs)
    return run


def test_the_page_is_one_file_without_network_requests(
    finished_hiecoatt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a page.html"
    assert report.main([str(finished_hiecoatt), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    html = out.read_text()
    assert not re.search(r"""(?:src|href|url|action)\s*[=(]\s*["']?\s*(?!#|data:)[a-z/.]""", html)
    assert "default-src 'none'" in html and 'http-equiv="refresh"' not in html
    assert "Question level" in html and "问题层" in html
    assert "HieCoAtt (parallel) on " in html and "data:image/jpeg" in html


def test_the_difference_is_marked_in_words(tmp_path: Path) -> None:
    runs = [finished(tmp_path, 0, 45.0), finished(tmp_path, 0, 20.0, **{"model.layers": 1})]
    html = made(*runs)
    assert '<span class="within">≈ -1.2' in html
    assert "95% interval 39.4 to 50.8, 290 questions" in html
    assert '<span class="lower">▼ -26.2' in html
    assert "Yang et al. 2016" in html and "SAN (1 layer, LSTM) on DAQUAR-REDUCED" in html
    assert "--recipe san-2-lstm-daquar-reduced --set model.layers=1" in html


def test_comparison_columns_need_a_published_figure(tmp_path: Path) -> None:
    compared, alone = finished(tmp_path, 0, 45.0), unfinished(tmp_path, 1)
    recipe = json.loads((alone / "recipe.json").read_text())
    write_json(alone / "recipe.json", {**recipe, "published": None})
    heads = re.compile(r'<th scope="colgroup" colspan="(\d)">')
    assert heads.findall(made(compared, alone)) == ["3", "3"]  # accuracy, WUPS 0.9
    assert heads.findall(made(alone)) == ["1"]


def test_per_type_accuracies_are_next_to_the_published_ones(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {**metrics, "per_answer_type": {"color": 51.25}})
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["published"]["others"]["color"] = 50.0
    write_json(run / "recipe.json", recipe)
    assert re.search(r"color</th>.*51\.2.*50\.0, ▲ \+1\.2", made(run), re.DOTALL)


def test_an_unfinished_run_shows_its_progress(tmp_path: Path) -> None:
    fresh = unfinished(tmp_path, 0)
    (fresh / "log.jsonl").unlink()
    assert "not finished: epoch 0 of 40" in made(fresh) and "Nothing is logged yet" in made(fresh)
    log(fresh, 0)
    assert made(fresh).count('id="loss-group-0"') == 1, "the first steps are a curve"
    log(fresh, 3)
    with (fresh / "log.jsonl").open("a") as file:
        file.write('{"type": "epoch", "st')  # being written
    html = made(fresh, finished(tmp_path, 0, 45.0))
    assert "not finished: epoch 3 of 40" in html and "validation accuracy 33.0%" in html
    assert "<strong>45.0</strong>" in html and "99.0</strong>" not in html


def test_watch_ends_with_the_last_run(tmp_path: Path) -> None:
    run, out = unfinished(tmp_path, 2), tmp_path / "watched.html"
    watcher = subprocess.Popen(
        [sys.executable, "-m", "vqa_repro.report", run, "--watch", "1", "--out", out],
        env=environ(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for _ in range(1200):
            if out.exists():
                break
            time.sleep(0.1)
        assert '<meta http-equiv="refresh" content="1">' in out.read_text()
        assert "epoch 2 of 40" in out.read_text()
        metrics = {"data": "daquar-reduced", "split": "test", "questions": 290, "overall": 41.5}
        write_json(run / "metrics.json", {**metrics, "seconds": 1.0, "epochs": 20})
        watcher.communicate(timeout=LIMIT)
    finally:
        watcher.kill()
    assert watcher.returncode == 0
    assert "41.5" in out.read_text() and 'http-equiv="refresh' not in out.read_text()


def test_a_run_without_a_gallery_says_how_to_make_one(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    assert f"python -m vqa_repro.report --examples {run}" in made(run)
    (run / "metrics.json").unlink()
    assert "--examples" not in made(run)


def test_both_languages_say_everything() -> None:
    for key, texts in messages().items():
        assert set(texts) == set(LANGUAGES), key
        fields = [set(re.findall(r"{\w+}", text)) for text in texts.values()]
        assert fields[0] == fields[1] and all(texts.values()), key
    used = "".join(path.read_text() for path in page.FOLDER.glob("*.html"))
    for key in re.findall(r'\bt\("(\w+)"[,)]', used):
        assert key in messages(), key


BAD = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\ud800"


def test_untrusted_text_is_escaped(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    for name, key in (("recipe", "title"), ("environment", "device"), ("environment", BAD)):
        content = json.loads((run / f"{name}.json").read_text())
        (run / f"{name}.json").write_text(json.dumps({**content, key: BAD} if key != BAD else
                                                     {**content, "without": [BAD]}))  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    bad_types = {"per_answer_type": {BAD: 1.0}, "wups_" + BAD: 2.0}
    (run / "metrics.json").write_text(json.dumps({**metrics, **bad_types}))
    log(run, 2)
    add_gallery(run, question=BAD)
    out = tmp_path / "r.html"
    report.write([run], out, "en", None)
    html = out.read_text()
    assert html.count("<script") == 1 and "<img" not in html and "alert(1)" in html
    assert "{{ 7*7 }}" in html


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", []),
        ("metrics.json", {"questions": "many"}),
        ("metrics.json", {"questions": 3, "epochs": 1, "seconds": 1, "overall": "high"}),
        ("metrics.json", {"questions": 3, "epochs": 1, "seconds": 1, "overall": 1e9}),
        ("metrics.json", {"questions": 3, "epochs": 1, "seconds": 1, "per_answer_type": [1]}),
        ("environment.json", {"device": 1}),
        ("environment.json", "x"),
        ("features.json", {"channels": 3, "scale": 1.0}),
        ("log.jsonl", {"step": 1, "type": "epoch", "epoch": "1", "loss": 1, "accuracy": 1}),
        ("log.jsonl", {"step": 1, "type": "epoch", "epoch": 1, "loss": 1e999, "accuracy": 1}),
        ("gallery.json", {"lists": {}}),
    ],
)
def test_a_hostile_run_folder_is_one_clear_line(tmp_path: Path, name: str, content: object) -> None:
    run = finished(tmp_path, 0, 45.0)
    (run / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(name)) as error:
        report.write([run], tmp_path / "r.html", "en", None)
    assert "\n" not in str(error.value) and not (tmp_path / "r.html").exists()


def test_the_command_or_the_recipe_repeats_the_run(tmp_path: Path) -> None:
    for number, name in enumerate(recipe_names()[::6]):
        changes = {"training.seed": 3, "model.dropout": 0.25}
        recipe = load_recipe(name, {} if "question-only" in name else changes)
        run = Run(tmp_path / str(number), recipe, VOCABULARY, {})
        command, file = commands.repeat(run)
        assert f"--recipe {name}" in command and not file
        (tmp_path / "recipe.toml").write_text(commands.toml(recipe.to_json()))
        again = load_recipe(str(tmp_path / "recipe.toml"), {}).to_json()
        for key in ("title", "data", "model", "training", "published"):
            assert again[key] == recipe.to_json()[key], (name, key)


def test_figures_for_slides(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    log(run, 3)
    add_gallery(run, question="$5 or $6?")
    out = tmp_path / "slides"
    assert report.main([str(run), "--png", str(out), "--out", str(tmp_path / "r.html")]) == 0
    names = {path.name for path in out.iterdir()}
    assert {"curves.png", "accuracy.png", "1-45.0-best-1.png", "1-45.0-errors-3.png"} <= names
    for path in out.iterdir():
        with Image.open(path) as image:
            assert image.width > 500


@pytest.mark.parametrize("kind", ("png", "svg", "pdf"))
@pytest.mark.parametrize("name", ["a file", "a file/below/it"])
def test_a_file_in_place_of_the_folder_of_figures_is_found_first(
    tmp_path: Path, kind: str, name: str
) -> None:
    run, out = finished(tmp_path, 0, 45.0), tmp_path / "r.html"
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match=f"--{kind} .*{name}: .*ot a directory"):
        report.main([str(run), f"--{kind}", str(tmp_path / name), "--out", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_for_papers(tmp_path: Path, kind: str, start: bytes) -> None:
    run = finished(tmp_path, 0, 45.0)
    log(run, 3)
    add_gallery(run, wrong=1)
    out = tmp_path / "figures"
    assert report.main([str(run), f"--{kind}", str(out), "--out", str(tmp_path / "r.html")]) == 0
    made = {path.name for path in out.iterdir()}
    assert {f"summary.{kind}", f"curves.{kind}", f"accuracy.{kind}"} <= made
    assert all(path.read_bytes().startswith(start) for path in out.iterdir())


def test_an_incomplete_copy_of_a_run_is_skipped_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, partial = finished(tmp_path, 0, 45.0), finished(tmp_path, 1, 44.0)
    (partial / "vocabulary.json").unlink()
    assert report.main([str(whole), str(partial), "--out", str(tmp_path / "r.html")]) == 0
    assert "vocabulary.json is missing" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"vocabulary\.json is missing"):
        report.load_runs([partial])


def test_what_two_runs_answer_differently_and_what_one_confuses(tmp_path: Path) -> None:
    runs = [finished(tmp_path, 0, 45.0), finished(tmp_path, 0, 20.0, **{"model.layers": 1})]
    for run, wrong in zip(runs, (3, 3), strict=True):
        add_gallery(run, wrong=wrong)
    content = (runs[1] / "gallery.json").read_text()
    (runs[1] / "gallery.json").write_text(content.replace('"dog"', '"<cow>"', 1))
    details = {"counts": {"per_answer_type": {"color": 1234}}, "confusions": [["cat", "<cow>", 7]]}
    write_json(runs[0] / contrasts.DETAILS, details)
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    write_json(runs[0] / "metrics.json", {**metrics, "per_answer_type": {"color": 51.0}})
    html = made(*runs)
    part = html[html.index('id="disagreements"') : html.index('id="confusions"')]
    assert part.count('<th scope="row">') == 1 and "dog" in part and "&lt;cow&gt;" in part
    assert "&lt;cow&gt;" in html[html.index('id="confusions"') :] and "1,234 questions" in html
    alone = made(runs[1])
    assert 'id="disagreements"' not in alone and 'id="confusions"' not in alone


def test_long_answers_leave_the_details_of_a_run_readable(tmp_path: Path) -> None:
    label = "x" * 5000
    split = Split("data", "test", [Example(1, "image", "what?", (label,), label)], {})
    write_json(tmp_path / contrasts.DETAILS, contrasts.score_details({1: "cat"}, split))
    details = contrasts.read_score_details(tmp_path)
    assert details is not None and [(given, n) for _, given, n in details.confusions] == [
        ("cat", 1)
    ]


def test_the_headline_names_what_a_model_must_beat(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {**metrics, "prior": 7.9, "coverage": 99.0})
    blind = finished(tmp_path, 0, 36.0, **{"model.name": "question-only"})
    html = made(run, blind)
    headline = html[html.index('class="headline"') :].partition("</p>")[0]
    assert "most frequent answer: 7.9%" in headline and "question only: 36.0%" in headline


def test_curves_hold_steps_or_epochs_and_never_both(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    log(run, 2)
    early = comparison.read_log(open_run(run))
    assert charts.measure([[early]], "loss") == "step"
    assert charts.curve(early, "loss", "step") == [(n / 10, 3.0) for n in range(1, 8)]
    log(run, 3)
    later = comparison.read_log(open_run(run))
    assert charts.curve(later, "loss", "epoch") == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert charts.measure([[early], [later]], "loss") == "epoch", "the same for all runs of a chart"


def test_titles_follow_the_model_and_not_the_changed_recipe() -> None:
    changed = load_recipe("easy-vqa", {"model.layers": 1, "model.question": "cnn"})
    assert model_title(changed) == "SAN (1 layer, CNN) on easy-VQA"
    moved = load_recipe("hiecoatt-alternating-vqa-v2", {"data.name": "a/folder", "data.test": "x"})
    assert model_title(moved) == "HieCoAtt (alternating) on folder"
    for name in recipe_names():
        assert " on " in model_title(load_recipe(name, {})), name


def test_a_run_is_the_papers_procedure_only_unchanged() -> None:
    names = ("san-2-lstm-vqa-v2", "hiecoatt-parallel-coco-qa", "easy-vqa", "deeper-lstm-daquar")
    assert [procedure(load_recipe(n, {})) for n in names] == ["paper", "paper", "ours", ""]
    assert procedure(load_recipe(names[0], {"training.learning_rate": 0.1})) == "ours"
    for change in [
        {"training.learning_rate": 0.1},
        {"training.order": "grouped"},
        {"model.dropout": 0.7},
        {"model.input_dropout": 0.5},
        {"model.init": "own"},
        {"data.feature_scale": "auto"},
    ]:
        assert procedure(load_recipe("san-2-lstm-daquar-paper", change)) == "ours", change
    assert procedure(load_recipe(names[0], {"model.layers": 1})) == "paper", "the model, not how"
    assert procedure(load_recipe(f"{names[0]}-fast", {})) == "ours"
    assert procedure(load_recipe(names[0], {"training.seed": 3})) == "paper"
    assert procedure(load_recipe(names[0], {"training.test_every": 1})) == "paper", "it only logs"


def test_runs_of_equal_name_are_distinguished_by_their_options(tmp_path: Path) -> None:
    one = RunSummary.load(finished(tmp_path, 0, 45.0))
    recipe = load_recipe("san-2-lstm-daquar-reduced", {"training.regions": 0.5})
    other = replace(one, run=replace(one.run, recipe=recipe))
    first, second = comparison.group_runs([one, other])
    assert first.title != second.title and "training.regions=0.5" in second.title
    html = page.page([one, other], "en", None)
    assert "Differences in configuration" in html and ">training.regions</th>" in html


def test_prior_and_coverage_are_next_to_the_score(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {**metrics, "prior": 12.25, "coverage": 87.5})
    html = made(run)
    assert "Most frequent answer" in html and "<td>12.2</td>" in html
    assert "<td>87.5</td>" in html
    head, _, row = rows(tables.markdown([RunSummary.load(run)]))
    assert row[1 + head.index("most frequent answer, %")] == "12.2"
    assert row[1 + head.index("95% interval")] == "39.4 to 50.8"


def test_folders_that_are_not_runs_are_skipped_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = finished(tmp_path, 0, 45.0), tmp_path / "r.html"
    (tmp_path / "slurm-77.log").write_text("log")
    (tmp_path / "tb").mkdir()
    others = [str(tmp_path / "slurm-77.log"), str(tmp_path / "tb")]
    assert report.main([*others, str(run), "--out", str(out)]) == 0
    noted = capsys.readouterr().err
    assert "slurm-77.log" in noted and "tb" in noted and "slurm-77.log" in out.read_text()
    with pytest.raises(UserError, match=r"slurm-77\.log"):
        report.main(others)


def test_examples_goes_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--examples"):
        report.main(["--examples", str(tmp_path), "--markdown"])
    run = unfinished(tmp_path, 1)
    with pytest.raises(UserError, match="not finished"):
        report.main(["--examples", str(run), "--device", "cpu"])


CHINESE = [name for name in figures.CHINESE if name in figures.families()]


@pytest.fixture
def without_chinese(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caches = (figures.families, figures._characters, figures._note_missing_font)
    monkeypatch.setattr(figures, "CHINESE", ())
    for cached in caches:
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def chinese_slides(folder: Path) -> dict[str, bytes]:
    run = finished(folder, 0, 45.0)
    log(run, 3)
    add_gallery(run, wrong=1, question="这是什么")
    out = folder / "slides"
    arguments = [str(run), "--png", str(out), "--out", str(folder / "r.html")]
    assert report.main([*arguments, "--language", "zh"]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_slides_in_chinese_with_a_chinese_font(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not CHINESE:
        pytest.skip("no font with Chinese on this machine")
    made = chinese_slides(tmp_path)  # a character missing from the font is a warning, here an error
    assert len(made) == 5
    output = capsys.readouterr()
    assert "English" not in output.out and output.err == ""


def test_slides_are_in_english_without_a_chinese_font_with_a_note(
    tmp_path: Path, without_chinese: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(chinese_slides(tmp_path)) == 5
    output = capsys.readouterr()
    assert "these are in English" in output.out
    assert output.err.count("question marks") == 1
    assert figures.drawable("这 is $5\ud800") == r"? is \$5?"


@pytest.mark.slow
def test_paging_and_the_error_sheet_in_a_browser(browser: Any, tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 45.0)
    log(run, 3)
    add_gallery(run, question=BAD)
    out = tmp_path / "r.html"
    report.write([run], out, "en", None)
    context = browser.new_context(viewport={"width": 420, "height": 800})
    tab = context.new_page()
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("dialog", lambda dialog: (errors.append("a dialog"), dialog.dismiss()))
    tab.goto(out.as_uri())
    album = tab.locator("#g1-errors")
    leaf = album.locator(".leaf:visible")
    assert leaf.count() == 1 and album.locator("output").last.inner_text() == "1 / 3"
    album.locator(".on").click()
    assert album.locator("output").last.inner_text() == "2 / 3"
    assert leaf.get_attribute("data-question") == "2"
    tab.keyboard.press("ArrowLeft")
    assert leaf.get_attribute("data-question") == "1" and album.locator(".back").is_disabled()
    tab.keyboard.press("2")
    tab.keyboard.press("ArrowRight")
    leaf.get_by_label("attention on the wrong region").check()
    sheet = tab.locator(".sheet")
    counts = dict(
        zip(page.ERROR_CLASSES, sheet.locator("tbody .count").all_inner_texts(), strict=True)
    )
    assert counts == {"region": "1", "answer": "1", "ambiguous": "0", "label": "0"}
    assert sheet.locator("tbody .share").all_inner_texts() == ["50%", "50%", "0%", "0%"]
    assert sheet.locator(".all").inner_text() == "2 / 3"
    with tab.expect_download() as download:
        sheet.locator(".save").click()
    saved = tmp_path / "marks.json"
    download.value.save_as(saved)
    assert json.loads(saved.read_text())["marks"] == {"1": "answer", "2": "region"}

    tab.reload()
    assert sheet.locator(".all").inner_text() == "2 / 3", "kept over a reload"
    album.locator(".on").click()
    tab.keyboard.press("4")
    assert sheet.locator(".all").inner_text() == "3 / 3"
    sheet.locator("input[type=file]").set_input_files(saved)
    tab.wait_for_function("document.querySelector('.all').textContent === '2 / 3'")
    saved.write_text("no marks")
    sheet.locator("input[type=file]").set_input_files(saved)
    sheet.locator(".not-marks").wait_for(state="visible")

    tab.get_by_label("中文").check()
    assert tab.locator("h1").inner_text() == messages()["title"]["zh"]
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(overflow) <= 0, "a small screen needs no scrolling sideways"
    tab.emulate_media(media="print")
    assert album.locator(".leaf:visible").count() == 3, "paper shows more than the open leaf"
    assert tab.locator("button:visible, fieldset:visible").count() == 0
    assert errors == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_axe_and_the_keyboard_find_nothing_wrong(
    browser: Any, tmp_path: Path, finished_hiecoatt: Path, scheme: str, language: str
) -> None:
    """Five seeds, a run with other options, one of another data set, one that still trains."""
    runs = [finished(tmp_path, seed, 45.0 + seed) for seed in range(5)]
    runs.append(finished(tmp_path, 0, 40.0, **{"model.layers": 1}))
    for wrong, run in enumerate((runs[0], runs[-1]), start=3):
        log(run, 3)
        add_gallery(run, wrong)
    (tmp_path / "training").mkdir()
    runs += [unfinished(tmp_path / "training", 2), finished_hiecoatt]
    out = tmp_path / "r.html"
    report.write(runs, out, language, None)
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1300, "height": 900})
    tab = context.new_page()
    tab.goto(out.as_uri())
    assert violations(tab) == []
    assert unreachable(tab) == []
    tab.set_viewport_size({"width": 360, "height": 700})
    assert violations(tab) == [], "on a phone"
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(overflow) <= 0
    context.close()
