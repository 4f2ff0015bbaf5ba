"""The results of a training: test predictions, scores, attention images, a table."""

import shlex
from dataclasses import replace
from typing import Any

from vqa_repro.data.registry import DATASETS
from vqa_repro.data.types import Split
from vqa_repro.evaluation import examples, familiarity, held_out, vqa_accuracy, wups
from vqa_repro.evaluation.baselines import prior_and_coverage, question_only
from vqa_repro.evaluation.examples import Gallery
from vqa_repro.evaluation.inference import Predictions, answers_by_id
from vqa_repro.evaluation.scoring import score
from vqa_repro.evaluation.titles import model_title
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.models.network import VQAModel
from vqa_repro.reporting import contrasts, figures
from vqa_repro.reporting.model_card import model_card
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json, write_atomic, write_json

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
    if recipe.data.features != "none":
        images = list(data.train_split.images)
        if statistics := familiarity.image_statistics(network, data.store, images):
            familiarity.write_statistics(run.folder, statistics)
    epochs = [r for r in log if r["type"] == "epoch"]
    selected = epochs[-1]
    if recipe.training.keep == "best":
        selected = max(epochs, key=lambda record: float(record["validation_accuracy"]))
    tested = [r["test_accuracy"] for r in epochs if "test_accuracy" in r]
    metrics = {
        "data": recipe.data.name,
        "split": recipe.data.tested_on,
        "questions": len(results),
        "seed": recipe.training.seed,
        "seconds": round(seconds, 1),
        "epochs": len(epochs),
        "kept_epoch": selected["epoch"],
        "validation_accuracy": selected.get("validation_accuracy"),
        # The best of many looks at the test: what a paper may report, and no result.
        "best_on_test": max(tested, default=None),
        "published": recipe.published.accuracy if recipe.published else None,
        **score_run(run, results, data.test_split),
        **prior_and_coverage(data.test_split, run.vocabulary.answers),
    }
    write_json(run.folder / contrasts.DETAILS, contrasts.score_details(results, data.test_split))
    card = model_card(run, metrics).encode()
    write_atomic(run.folder / "README.md", lambda file: file.write(card))
    write_json(run.folder / "metrics.json", metrics)


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
    shown = [made.records[position] for position in made.lists["sample"][:PICTURES]]
    for number, asked in enumerate(shown, start=1):
        if asked.picture is None:  # a model that sees no picture, and none is there
            print("  no attention figures: the images are missing")
            return
        figures.example(asked, made.images, folder / f"{number}.png")


def table(run: Run) -> str:
    """Return our figures next to the published ones, and the files to open."""
    metrics = read_json(run.folder / "metrics.json")
    recipe = run.recipe
    ours = f"accuracy on {metrics['data']}, {metrics['split']} ({metrics['questions']:,} questions)"
    overall = metrics["overall"]
    score = "  hidden" if overall is None else f"{overall:6.2f}%"
    lines = ["", f"  {ours}", f"    {score}  this run (seed {metrics['seed']})"]
    if recipe.published:
        lines += [f"    {recipe.published.accuracy:6.2f}%  published: {recipe.published.source}"]
    if metrics.get("prior") is not None:
        answer = run.vocabulary.answers[0]
        lines += [f'    {metrics["prior"]:6.2f}%  always answering "{answer}"']
        lines += [f"    {metrics['coverage']:6.2f}%  of the questions have an answer of the model"]
    if (accuracy := question_only(run)) is not None:
        lines += [f"    {accuracy:6.2f}%  question only, without the image"]
    if recipe.changed:
        lines += [f"    this run changed the recipe: {', '.join(recipe.changed)}"]
    others = recipe.published.others if recipe.published else {}
    parts = {name: value for name, value in metrics.items() if name.startswith("wups")}
    for name, value in (parts | metrics["per_answer_type"]).items():
        published = f" (published: {others[name]:.1f})" if name in others else ""
        lines += [f"    {value:6.2f}%  {name}{published}"]
    return "\n".join(
        [
            *lines,
            "",
            f"  curves             {run.folder / 'curves.png'}",
            f"  attention          {run.folder / 'attention'}",
            f"  answers            {run.folder / 'results.json'}",
            f"  report             python -m vqa_repro.report {shlex.quote(str(run.folder))}",
            f"  ask a question     python -m vqa_repro.predict {shlex.quote(str(run.folder))}"
            " --image IMAGE --question QUESTION --attention look.png",
        ]
    )
