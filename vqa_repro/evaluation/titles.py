"""Titles of runs, from their model and data; names of recipes do not matter."""

from pathlib import Path

from vqa_repro.recipe import Recipe

_DATA = {
    "easy-vqa": "easy-VQA",
    "vqa-v1": "VQA v1",
    "vqa-v2": "VQA v2",
    "coco-qa": "COCO-QA",
    "daquar": "DAQUAR-ALL",
    "daquar-reduced": "DAQUAR-REDUCED",
}
_MODELS = {
    "san": "SAN",
    "hiecoatt": "HieCoAtt",
    "bag-of-words": "Bag of words + image",
    "deeper-lstm": "Deeper LSTM Q + norm I",
    "question-only": "Question only (LSTM)",
    "show-ask-attend": "Show, Ask, Attend, and Answer",
}
# Options that are part of the title.
IN_TITLE = {
    *("data.name", "data.train", "data.test"),
    *("model.name", "model.layers", "model.question", "model.coattention"),
}

# Options of [training] that are no part of the procedure: which run, and what it logs.
NOT_TRAINED_BY = {"training.seed", "training.test_every"}
# Options elsewhere that are, with every kind of dropout: what the network starts from.
_ALSO_TRAINED_BY = {"model.init", "data.feature_scale"}


def model_title(recipe: Recipe) -> str:
    """Return for example "SAN (2 layers, LSTM) on easy-VQA", true after any change of options."""
    return f"{model_name(recipe)} on {data_title(recipe)}"


def model_name(recipe: Recipe) -> str:
    """Return for example "SAN (2 layers, LSTM)"."""
    options = recipe.model
    name = str(options["name"])
    title = _MODELS.get(name, name)
    if name == "san":
        layers = options.get("layers", 2)
        question = str(options.get("question", "lstm")).upper()
        title += f" ({layers} {'layer' if layers == 1 else 'layers'}, {question})"
    elif name == "hiecoatt":
        title += f" ({options.get('coattention', 'parallel')})"
    return title


def data_title(recipe: Recipe) -> str:
    """Return the data set, and its splits if there are several choices."""
    data = recipe.data
    name = _DATA.get(data.name, Path(data.name).name)
    return f"{name}, {data.train} -> {data.test}" if data.name.startswith("vqa-") else name


def procedure(recipe: Recipe) -> str:
    """Return how the run was trained: "paper" (the paper's procedure), "ours", or "" if no paper.

    SAN's procedure is SGD with momentum and a constant rate, HieCoAtt's RMSprop with an exponential
    one, both on questions in independent random order. Any change of how the model is trained, its
    dropout or its initial values makes it ours.
    """
    papers = {"san": ("sgd", "constant", "iid"), "hiecoatt": ("rmsprop", "exponential", "iid")}
    name = recipe.model["name"]
    if name not in papers:
        return ""
    ours = any(map(_trained_by, recipe.changed))
    training = recipe.training
    same = (training.optimizer, training.schedule, training.order) == papers[name]
    return "paper" if same and not ours else "ours"


def _trained_by(option: str) -> bool:
    if option.startswith("training."):
        return option not in NOT_TRAINED_BY
    return option in _ALSO_TRAINED_BY or (
        option.startswith("model.") and option.endswith("dropout")
    )
