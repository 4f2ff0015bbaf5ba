"""The results of a training: test predictions, scores, attention images, a table."""

import shlex
from dataclasses import replace
from typing import Any

from vqa_repro.data.registry import DATASETS
from vqa_repro.data.types import Split
from vqa_repro.evaluation import examples, held_out, vqa_accuracy, wups
from vqa_repro.evaluation.baselines import prior_and_coverage
from vqa_repro.evaluation.examples import Gallery
from vqa_repro.evaluation.inference import Predictions, answers_by_id
from vqa_repro.evaluation.scoring import score
from vqa_repro.evaluation.titles import model_title
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.models.network import VQAModel
from vqa_repro.reporting import figures
from vqa_repro.run import Run, read_json, write_json
from vqa_repro.utils.errors import UserError

PICTURES = 8  # attention pictures drawn at the end


def finish(
    run: Run, network: VQAModel, data: Any, predictions: Predictions, seconds: float
) -> None:
    """Score the test's predictions, write and draw the results; metrics.json last."""
    recipe = run.recipe
    results = answers_by_id(predictions, data.test, run.vocabulary.answers)
    vqa_accuracy.write_results(run.folder / "results.json", results)
    if recipe.data.fold:
        record = held_out.held_out_record(
            recipe.data, data.test_split, results, predictions, data.test
        )
        write_json(run.folder / held_out.NAME, record)
    log = run.log()
    figures.curves(log, run.folder / "curves.png", model_title(recipe))
    if len(data.loader) < len(data.store.rows):  # examples may be another process's
        loader = FeatureLoader(data.store, data.loader.device, "disk")
        data = replace(data, loader=loader)
    try:
        made = examples.make(
            run, network, data.loader, data.test, data.test_split, predictions, results
        )
        draw_some(run, made)
    except UserError as error:
        print(f"  no examples for the report and no attention images: {error}")
    epochs = [r for r in log if r["type"] == "epoch"]
    selected = epochs[-1]
    if recipe.training.keep == "best":
        selected = max(epochs, key=lambda record: float(record["validation_accuracy"]))
    write_json(
        run.folder / "metrics.json",
        {
            "data": recipe.data.name,
            "split": recipe.data.tested_on,
            "questions": len(results),
            "seed": recipe.training.seed,
            "seconds": round(seconds, 1),
            "epochs": len(epochs),
            "kept_epoch": selected["epoch"],
            "validation_accuracy": selected.get("validation_accuracy"),
            "published": recipe.published.accuracy if recipe.published else None,
            **score_run(run, results, data.test_split),
            **prior_and_coverage(data.test_split, run.vocabulary.answers),
        },
    )


def score_run(run: Run, results: dict[int, str], split: Split) -> dict[str, Any]:
    """Return the scores of a run: accuracy, and WUPS for the data sets that report it.

    A split with hidden answers has none: its evaluation server scores it.
    """
    if split.hidden:
        print("  the answers are hidden: the evaluation server scores results.json")
    wordnet = None
    name = run.recipe.data.name
    if name in DATASETS and DATASETS[name].wups and not split.hidden:
        try:
            wordnet = wups.WordNet()
        except UserError as error:
            print(f"  no WUPS: {error}")
    return score(results, split, wordnet=wordnet)


def draw_some(run: Run, made: Gallery) -> None:
    """Attention pictures of a few test questions about different pictures."""
    folder = run.folder / "attention"
    folder.mkdir(exist_ok=True)
    shown = [made.asked[position] for position in made.lists["sample"][:PICTURES]]
    for number, asked in enumerate(shown, start=1):
        if asked.picture is None:  # a model that sees no picture, and none is there
            print("  no attention pictures: the pictures are missing")
            return
        figures.example(asked, made.pictures, folder / f"{number}.png")


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
            f"  all of it, a page  python -m vqa_repro.report {shlex.quote(str(run.folder))}",
            f"  ask it             python -m vqa_repro.predict {shlex.quote(str(run.folder))}"
            " --image PICTURE --question QUESTION --attention look.png",
        ]
    )
