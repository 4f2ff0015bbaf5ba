"""The model card of a run: README.md with the metadata that model hubs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqa_repro.evaluation.baselines import question_only
from vqa_repro.evaluation.titles import model_title
from vqa_repro.release import published
from vqa_repro.run import Run

# What the publishers state about the questions; the images of COCO are under Flickr's terms.
LICENCES = {
    "easy-vqa": "easy-VQA: MIT licence (the package's metadata).",
    "vqa-v1": "VQA annotations: CC BY 4.0. COCO images: terms of use of Flickr.",
    "vqa-v2": "VQA annotations: CC BY 4.0. COCO images: terms of use of Flickr.",
    "coco-qa": "COCO-QA: no licence in the published files. COCO images: terms of use of Flickr.",
    "daquar": "DAQUAR: no licence in the published files. Photos: NYU Depth v2.",
    "daquar-reduced": "DAQUAR: no licence in the published files. Photos: NYU Depth v2.",
}


def _metadata(run: Run, accuracy: float | None) -> list[str]:
    """Return the lines that model hubs read; the licence of the weights is for the user to add."""
    name = json.dumps(Path(run.recipe.data.name).name)  # of a folder, not the way to it
    lines = [
        "---",
        "library_name: vqa_repro",
        "pipeline_tag: visual-question-answering",
    ]
    lines += ["tags:", "- visual-question-answering", f"- {run.recipe.model['name']}"]
    if accuracy is not None:
        lines += [
            "model-index:",
            f"- name: {json.dumps(model_title(run.recipe))}",
            "  results:",
            "  - task: {type: visual-question-answering}",
            f"    dataset: {{name: {name}, type: {name}, split: "
            f"{json.dumps(run.recipe.data.tested_on)}}}",
            f"    metrics: [{{type: accuracy, value: {accuracy}}}]",
        ]
    return [*lines, "---"]


def model_card(run: Run, metrics: dict[str, Any]) -> str:
    """Return the text of README.md for ``run``; ``metrics`` is the content of metrics.json."""
    recipe = run.recipe
    data = Path(recipe.data.name).name
    accuracy = metrics.get("overall")
    trained_on = recipe.data.train
    if recipe.data.fold:
        trained_on += f" without fold {recipe.data.fold}"
    lines = [*_metadata(run, accuracy), "", f"# {model_title(recipe)}", ""]
    lines.append(
        f"{recipe.model['name']}, trained with vqa_repro on {data} ({trained_on}), seed "
        f"{recipe.training.seed}. It chooses among {len(run.vocabulary.answers):,} answers and "
        f"knows {len(run.vocabulary.words):,} words."
    )
    if accuracy is not None:
        count = metrics.get("questions")
        of = f" ({count:,} questions)" if isinstance(count, int) else ""
        lines.append(f"Accuracy on {recipe.data.tested_on}{of}: {accuracy}%.")
    if metrics.get("prior") is not None:
        lines.append(
            f"Always giving the most frequent answer ({run.vocabulary.answers[0]}) scores "
            f"{metrics['prior']}%; {metrics['coverage']}% of the questions have an answer that the "
            "model knows."
        )
    if (blind := question_only(run)) is not None:
        lines.append(f"A model that sees the question only has {blind}%.")
    if recipe.published is not None:
        lines.append(f"Published figure: {recipe.published.accuracy}% ({recipe.published.source}).")
    made_by = run.features["made_by"]
    needs = "no further weights"
    if made_by.get("weights_sha256"):
        file = made_by.get("weights", made_by["backbone"])  # features may be of another network
        needs = f"{file} (sha256 {made_by['weights_sha256']}), the frozen backbone"
    lines += [
        "",
        "## Use",
        "",
        "    python -m vqa_repro.predict THIS --image IMAGE --question 'what is it?'",
        "",
        f"It needs {needs}.",
        "",
        "## Limits",
        "",
        "The model always answers with one of its classes. An image or a question unlike those of "
        f"{data} is no basis for its probabilities.",
        "",
        "## Configuration",
        "",
        "```json",
        json.dumps(published(recipe).to_json(), indent=1, ensure_ascii=False),
        "```",
        "",
        "## Licences of the data",
        "",
        LICENCES.get(recipe.data.name, "A folder of the author's own: ask the author."),
        "",
    ]
    return "\n".join(lines)
