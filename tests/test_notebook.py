"""notebooks/tour.ipynb runs from top to bottom, on drawn images instead of easy-VQA."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import LIMIT, PROJECT
from nbclient import NotebookClient

TOUR = PROJECT / "notebooks" / "tour.ipynb"


def test_the_committed_outputs_are_small_and_show_results_but_no_path() -> None:
    # As committed: a user's own run has other outputs.
    show = ["git", "-C", str(PROJECT), "show", f":{TOUR.relative_to(PROJECT)}"]
    shown = subprocess.run(show, capture_output=True, text=True)
    text = shown.stdout if shown.returncode == 0 else TOUR.read_text(encoding="utf-8")
    tour = nbformat.reads(text, as_version=4)
    nbformat.validate(tour)
    assert tour.metadata.kernelspec.name == "vqa_repro"
    assert len(text) < 600_000
    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    assert all(
        output.output_type != "error" and output.get("name") != "stderr" for output in outputs
    )
    data = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in each for each in data) == 3  # a reader on GitHub sees them
    texts = [output.get("text", "") for output in outputs]
    texts += [each.get(kind, "") for each in data for kind in ("text/plain", "text/html")]
    assert "this run (seed 0)" in "".join(texts)
    absolute = re.compile(r"(?<![\w.<])(?:/\w[\w.-]*){2,}|[A-Z]:\\|~/")
    assert [match[0] for text in texts for match in absolute.finditer(text)] == []


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide a kernel called vqa_repro: this Python, this project."""
    folder = tmp_path / "kernels" / "vqa_repro"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "vqa_repro", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    kernel: None, tmp_path: Path, drawn_folder: Path
) -> None:
    tour = nbformat.read(TOUR, as_version=4)
    (parameters,) = (cell for cell in tour.cells if "parameters" in cell.metadata.get("tags", []))
    changes = {
        "data.name": str(drawn_folder),
        "data.test": "val",
        "data.picture_size": 32,
        "data.validation": 0.1,
        "model.hidden": 16,
        "model.attention": 16,
        "training.batch_size": 12,
        "training.epochs": 3,
    }
    parameters.source = (
        f"FOLDER = Path({str(tmp_path)!r})\nRECIPE = 'easy-vqa'\nCHANGES = {changes}"
    )
    NotebookClient(tour, timeout=LIMIT, resources={"metadata": {"path": tmp_path}}).execute()

    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    notes = "".join(o.text for o in outputs if o.get("name") == "stderr").splitlines()
    assert [line for line in notes if not line.startswith("  storing 52 images")] == []
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) == 3  # images and questions, curves, attention

    run = tmp_path / "runs" / drawn_folder.name
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["epochs"] == 3
    assert f"{metrics['overall']:.2f}%  this run" in printed
    assert "120 questions about 40 images" in printed
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
