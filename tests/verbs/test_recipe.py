"""Recipes: those of the package are complete, recipes that extend others, invalid ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vqa_repro.data.registry import DATASETS
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.models.network import build
from vqa_repro.recipe import load_recipe, recipe_names
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError

WORDS = Vocabulary(("<pad>", "<unk>", "what"), ("yes", "no", "red"))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_model_and_names_its_source(name: str) -> None:
    recipe = load_recipe(name, {})
    assert recipe.name == name and recipe.data.name in DATASETS
    assert recipe.data.name.removesuffix("-reduced") in name
    if recipe.published:
        assert 20 < recipe.published.accuracy < 100 and len(recipe.published.source) > 20
    if recipe.training.keep == "best":
        assert recipe.data.validation
    run = Run(Path("run"), recipe, WORDS, {"channels": 512, "scale": 1.0, "made_by": {}})
    network = build(run).eval()
    if recipe.data.features != "cnn":
        answer = network(torch.zeros(2, 9, 512), torch.tensor([[2], [2]]), torch.tensor([1, 1]))
        assert answer.logits.shape == (2, 3)


def test_every_row_of_the_papers_tables_has_its_recipe() -> None:
    names = set(recipe_names())
    for layers in (1, 2):
        for question in ("lstm", "cnn"):
            for data in ("daquar", "daquar-reduced", "coco-qa", "vqa-v1-val2"):
                recipe = load_recipe(f"san-{layers}-{question}-{data}", {})
                assert recipe.published is not None
                assert recipe.model["layers"] == layers and recipe.model["question"] == question
    for coattention in ("parallel", "alternating"):
        for data in ("vqa-v1-test", "coco-qa", "daquar", "daquar-reduced"):
            recipe = load_recipe(f"hiecoatt-{coattention}-{data}", {})
            assert recipe.model["coattention"] == coattention
    assert {"san-2-cnn-vqa-v1-test", "san-1-lstm-vqa-v2", "hiecoatt-alternating-vqa-v2"} <= names


def test_fast_recipes_change_precision_and_order_alone() -> None:
    for name in (name for name in recipe_names() if "vqa-v" in name):
        recipe = load_recipe(name, {})
        if not name.endswith("-fast"):
            assert recipe.training.precision == "float32" and recipe.training.order == "iid"
            continue
        whole = load_recipe(name.removesuffix("-fast"), {})
        assert recipe.model == whole.model and recipe.data == whole.data
        faster = replace(whole.training, precision="bfloat16", order="grouped")
        assert recipe.training == faster


@pytest.mark.parametrize("question", ["lstm", "cnn"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("data", "epochs"), [("daquar", 100), ("daquar-reduced", 200)])
def test_the_authors_training_procedure_on_daquar(
    question: str, layers: int, data: str, epochs: int
) -> None:
    own = load_recipe(f"san-{layers}-{question}-{data}", {})
    recipe = load_recipe(f"san-{layers}-{question}-{data}-paper", {})
    training = recipe.training
    assert recipe.published == own.published and recipe.data.feature_scale == "none"
    assert own.model.get("init", "auto") == {"lstm": "auto", "cnn": "code"}[question]
    code = {"init": "code", "dropout": 0.5, "input_dropout": 0.0}
    assert recipe.model == {**own.model, **code}
    assert (training.regions, training.ema) == (1.0, 0.0), "these are ours"
    assert (training.optimizer, training.momentum, training.epochs) == ("sgd", 0.9, epochs)
    assert (training.schedule, training.keep) == ("constant", "last")
    assert (training.clip, training.clip_per, training.embedding_rate) == (0.1, "tensor", 80)
    assert training.weight_decay == 1e-3  # of 5e-4 sum p^2
    assert training.learning_rate == {"lstm": 0.05, "cnn": 0.1}[question]


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "easy-vqa"\ntitle = "mine"\n[model]\nlayers = 1\n')
    mine, base = load_recipe(str(path), {}), load_recipe("easy-vqa", {})
    assert mine.title == "mine" and mine.name == "mine"
    assert mine.model == {**base.model, "layers": 1}
    assert mine.training == base.training and mine.published == base.published
    path.write_text('base = "easy-vqa"\n[model]\nname = "bag-of-words"\n')
    assert load_recipe(str(path), {}).model == {"name": "bag-of-words"}


@pytest.mark.parametrize(
    "change", [{"data.test": "val2014"}, {"data.train": "val2014"}, {"data.single_answers": True}]
)
def test_other_questions_drop_the_published_number(change: dict[str, object]) -> None:
    assert load_recipe("san-2-lstm-vqa-v1-val2", {}).published is not None
    assert load_recipe("san-2-lstm-vqa-v1-val2", change).published is None


def test_an_option_set_to_its_default_changes_nothing() -> None:
    same = {"training.ema": 0.0, "training.teachers": [], "data.fold": "", "training.epochs": 50}
    recipe = load_recipe("san-2-lstm-vqa-v1-val2", {})
    same["training.epochs"] = recipe.training.epochs
    assert load_recipe("san-2-lstm-vqa-v1-val2", same) == recipe
    assert load_recipe("san-2-lstm-vqa-v1-val2", {"training.ema": 0.9}).changed == ["training.ema"]


def test_another_model_drops_the_title_and_the_published_number() -> None:
    changes = {"model.hidden": 64, "model.name": "hiecoatt"}
    changed = load_recipe("easy-vqa", changes)
    assert changed.model == {"name": "hiecoatt", "hidden": 64}
    assert changed.title == "hiecoatt on easy-vqa" and changed.published is None
    assert changed.training == load_recipe("easy-vqa", {}).training
    same = load_recipe("easy-vqa", {"model.name": "san", "model.hidden": 64})
    assert same.model["layers"] == 2 and same.published is not None


def test_changes_to_what_a_recipe_does_not_have_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"title\.x.*data, model, training, published"):
        load_recipe("easy-vqa", {"title.x": 1})
    file = tmp_path / "recipe.toml"
    file.write_text('title = "x"\n[model]\nname = "san"\n[training]\nepochs = 1\n')
    with pytest.raises(UserError, match=r"recipe\.toml: has no table \[data\]"):
        load_recipe(str(file), {"model.name": "hiecoatt"})


@pytest.mark.parametrize("share", [1.0, 0.9985, -0.1, float("nan")])
def test_a_dropout_that_leaves_nothing_is_refused(share: float, tmp_path: Path) -> None:
    recipe = load_recipe("easy-vqa", {"model.dropout": share})
    run = Run(tmp_path, recipe, WORDS, {"channels": 8, "made_by": {}, "scale": 1.0})
    with pytest.raises(UserError, match=r"dropout = .*from 0 to 0\.99"):
        build(run)


def test_missing_and_circular_bases_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa_repro.recipe.FOLDER", tmp_path)
    (tmp_path / "a.toml").write_text('base = "b"\n')
    with pytest.raises(UserError, match=r"b\.toml: cannot be read"):
        load_recipe("a", {})
    (tmp_path / "b.toml").write_text('base = "a"\n')
    with pytest.raises(UserError, match="based on itself"):
        load_recipe("a", {})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.answers", "all", "'label' or 'sampled' or 'soft'"),
        ("data.single_answers", 1, r"data\.single_answers: Expected `bool`"),
        ("published.others", {"yes/no": "many"}, r"published\.others.*: Expected `float`"),
        ("training.clip", "0.1", r"training\.clip: Expected `float`"),
        ("training.clip", float("nan"), r"training\.clip: Expected `float` >= 0"),
        ("training.epochs", 0, r"training\.epochs: Expected `int` >= 1"),
        ("data.validation", 1.5, r"data\.validation: Expected `float` <= 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_reported(key: str, value: object, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_recipe("easy-vqa", {key: value})
