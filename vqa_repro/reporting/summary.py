"""What comes of a training: answers to the test questions, their score, pictures, a table."""

import shlex
from dataclasses import replace
from typing import Any

from vqa_repro.data.registry import DATASETS
from vqa_repro.data.types import Split
from vqa_repro.evaluation import examples, vqa_accuracy, wups
from vqa_repro.evaluation.baselines import prior_and_coverage
from vqa_repro.evaluation.examples import Gallery
from vqa_repro.evaluation.inference import Predictions, answers_by_id, predict_all
from vqa_repro.evaluation.titles import model_title
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.models.network import VQAModel
from vqa_repro.reporting import figures
from vqa_repro.run import Run, read_json, write_json
from vqa_repro.training.prepare import PreparedData
from vqa_repro.utils.distributed import SINGLE_PROCESS, World
from vqa_repro.utils.errors import UserError

PICTURES = 8  # attention pictures drawn at the end


def finish(
    run: Run,
    network: VQAModel,
    material: PreparedData,
    seconds: float,
    world: World = SINGLE_PROCESS,
) -> None:
    """Test, draw, and mark the run as finished. All processes test, the first does the rest."""
    answered = predict_all(network, material.rows, material.test, world)
    if world.size > 1:  # what is looked at closer may be another process's
        material = replace(
            material, rows=FeatureLoader(material.store, material.rows.device, "disk")
        )
    world.run_on_main(lambda: write(run, network, material, answered, seconds))


def write(
    run: Run, network: VQAModel, material: PreparedData, answered: Predictions, seconds: float
) -> None:
    """Write and draw what came of the training, metrics.json last."""
    recipe = run.recipe
    results = answers_by_id(answered, material.test, run.vocabulary.answers)
    vqa_accuracy.write_results(run.folder / "results.json", results)
    log = run.log()
    figures.curves(log, run.folder / "curves.png", model_title(recipe))
    try:
        made = examples.make(
            run, network, material.rows, material.test, material.test_split, answered, results
        )
        draw_some(run, made)
    except UserError as error:
        print(f"  no gallery for the report and no attention pictures: {error}")
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
            **prior_and_coverage(material.test_split, run.vocabulary.answers),
        },
    )


def scores(run: Run, results: dict[int, str], split: Split) -> dict[str, Any]:
    """The official metric, and WUPS for the data sets that are scored with it.

    Of a split whose answers are hidden there is no score: its server gives one.
    """
    if split.hidden:
        print("  the answers are hidden: the evaluation server scores results.json")
        return {"overall": None, "per_answer_type": {}, "per_question_type": {}}
    scored: dict[str, Any] = {**vqa_accuracy.score(results, split.examples)}
    if run.recipe.data.name in DATASETS and DATASETS[run.recipe.data.name].wups:
        try:
            scored |= wups.score(results, split.examples, wups.WordNet())
        except UserError as error:
            print(f"  without WUPS: {error}")
    return scored


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
            f"  ask it             python -m vqa_repro.predict --run {shlex.quote(str(run.folder))}"
            " --image PICTURE --question QUESTION --attention look.png",
        ]
    )
