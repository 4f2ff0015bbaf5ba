"""The accuracy of the most frequent answer and the coverage of the answer vocabulary."""

import json
import shutil
from pathlib import Path

import pytest

from vqa_repro.data.types import Example, Split
from vqa_repro.evaluation.baselines import prior_and_coverage, question_only
from vqa_repro.run import open_run


def test_prior_and_coverage() -> None:
    labels = ("yes", "yes", "no", "zebra")
    examples = [Example(n, "p", "what?", (label,), label) for n, label in enumerate(labels)]
    split = Split("data", "test", examples, {})
    assert prior_and_coverage(split, ("yes", "no")) == {
        "prior": pytest.approx(50.0),
        "coverage": pytest.approx(75.0),
    }
    with_dots = Split("data", "test", [Example(1, "p", "what?", ("yes.",) * 10, "yes.")], {})
    assert prior_and_coverage(with_dots, ("yes.",))["prior"] == pytest.approx(100.0)
    assert prior_and_coverage(with_dots, ("yes.",), pre_2021=True)["prior"] == 0
    hidden = [Example(n, "p", "what?", (), None) for n in range(3)]
    assert prior_and_coverage(Split("data", "test", hidden, {}), ("yes",)) == {}


def test_a_question_only_run_next_to_a_run(finished: Path, tmp_path: Path) -> None:
    run, neighbour = tmp_path / "run", tmp_path / "question-only"
    for folder in (run, neighbour):
        shutil.copytree(finished, folder)
    recipe = json.loads((neighbour / "recipe.json").read_text())
    recipe["model"] = {"name": "question-only"}
    (neighbour / "recipe.json").write_text(json.dumps(recipe))
    assert question_only(open_run(run)) is not None
    for odd in ([1], {}, None, "high"):
        (neighbour / "metrics.json").write_text(json.dumps({"overall": odd}))
        assert question_only(open_run(run)) is None
