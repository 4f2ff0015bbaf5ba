"""What comes of a training: answers to the test questions, their score, pictures, a table."""

import shlex
from collections.abc import Iterator
from typing import Any

import torch

from vqa_repro import metric, plots, wups
from vqa_repro.answering import predictions
from vqa_repro.datasets import DATA_SETS
from vqa_repro.errors import UserError
from vqa_repro.example import Example, Split
from vqa_repro.material import Material
from vqa_repro.model import Network
from vqa_repro.predict import Predictor, draw
from vqa_repro.run import Run, read_json, write_json

PICTURES = 8  # attention pictures drawn at the end


def finish(run: Run, network: Network, material: Material, seconds: float) -> None:
    """Test, draw, and mark the run as finished."""
    recipe = run.recipe
    answers = run.vocabulary.answers
    predicted = predictions(network, material.rows, material.test).tolist()
    ids = material.test.question_id.tolist()
    results = {i: answers[p] for i, p in zip(ids, predicted, strict=True)}
    metric.write_results(run.folder / "results.json", results)
    log = run.log()
    plots.curves(log, run.folder / "curves.png", recipe.title)
    draw_some(run, material, results)
    epochs = [r for r in log if r["type"] == "epoch"]
    kept = epochs[-1]
    if recipe.training.keep == "best":
        kept = max(epochs, key=lambda record: float(record["validation_accuracy"]))
    write_json(
        run.folder / "metrics.json",
        {
            "data": recipe.data.name,
            "split": recipe.data.test,
            "questions": len(results),
            "seed": recipe.training.seed,
            "seconds": round(seconds, 1),
            "epochs": len(epochs),
            "kept_epoch": kept["epoch"],
            "validation_accuracy": kept.get("validation_accuracy"),
            "published": recipe.published.accuracy if recipe.published else None,
            **scores(run, results, material.test_split),
        },
    )


def scores(run: Run, results: dict[int, str], split: Split) -> dict[str, Any]:
    """The official metric, and WUPS for the data sets that are scored with it.

    Of a split whose answers are hidden there is no score: its server gives one.
    """
    if split.hidden:
        print("  the answers are hidden: the evaluation server scores results.json")
        return {"overall": None, "per_answer_type": {}, "per_question_type": {}}
    scored: dict[str, Any] = {**metric.score(results, split.examples)}
    if run.recipe.data.name in DATA_SETS and DATA_SETS[run.recipe.data.name].wups:
        try:
            scored |= wups.score(results, split.examples, wups.WordNet())
        except UserError as error:
            print(f"  without WUPS: {error}")
    return scored


def draw_some(run: Run, material: Material, results: dict[int, str]) -> None:
    """Attention pictures of a few test questions about different pictures."""
    split = material.test_split
    missing = [path for path in split.images.values() if not path.exists()]
    if missing:
        print(f"  no attention pictures: {missing[0]} is missing")
        return
    folder = run.folder / "attention"
    folder.mkdir(exist_ok=True)
    predictor = Predictor(run, material.rows.device)
    for number, example in enumerate(spread(split.examples), start=1):
        note = results[example.question_id]
        if example.answers:
            right = metric.accuracy(note, example.answers) > 0
            note += " (right)" if right else f" (wrong), should be {example.answer}"
        picture = split.images[example.image]
        row = torch.tensor([material.row_of[example.image]], device=material.rows.device)
        prediction = predictor.answer(material.rows[row], example.question)
        draw(prediction, picture, folder / f"{number}.png", note)


def spread(examples: list[Example]) -> Iterator[Example]:
    """Up to PICTURES examples, each about another picture: its first question, its second, ..."""
    by_picture: dict[str, list[Example]] = {}
    for example in examples:
        by_picture.setdefault(example.image, []).append(example)
    pictures = list(by_picture.values())
    count = min(PICTURES, len(pictures))
    for number in range(count):
        asked = pictures[number * len(pictures) // count]
        yield asked[number % len(asked)]


def table(run: Run) -> str:
    """Ours beside the published figure, and where to look."""
    metrics = read_json(run.folder / "metrics.json")
    recipe = run.recipe
    ours = f"accuracy on {metrics['data']}, {metrics['split']} ({metrics['questions']:,} questions)"
    overall = metrics["overall"]
    score = "  hidden" if overall is None else f"{overall:6.2f}%"
    lines = ["", f"  {ours}", f"    {score}  this run (seed {metrics['seed']})"]
    if recipe.published:
        lines += [f"    {recipe.published.accuracy:6.2f}%  published: {recipe.published.source}"]
    if recipe.changed:
        lines += [f"    this run changed the recipe: {', '.join(recipe.changed)}"]
    others = recipe.published.others if recipe.published else {}
    parts = {name: value for name, value in metrics.items() if name.startswith("wups")}
    for name, value in (parts | metrics["per_answer_type"]).items():
        said = f" (published: {others[name]:.1f})" if name in others else ""
        lines += [f"    {value:6.2f}%  {name}{said}"]
    return "\n".join(
        [
            *lines,
            "",
            f"  curves             {run.folder / 'curves.png'}",
            f"  where it looked    {run.folder / 'attention'}",
            f"  answers            {run.folder / 'results.json'}",
            f"  ask it             python -m vqa_repro.predict --run {shlex.quote(str(run.folder))}"
            " --image PICTURE --question QUESTION --attention look.png",
        ]
    )
