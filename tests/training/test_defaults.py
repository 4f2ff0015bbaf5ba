"""What train chooses for a data set that has no recipe."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vqa_repro.data.types import Example, Split
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.features.extractor import cached_checkpoint
from vqa_repro.run import Run
from vqa_repro.training import defaults
from vqa_repro.training.prepare import PreparedData


def split(
    counts: dict[str, int], images: dict[str, Path] | None = None, name: str = "train"
) -> Split:
    labels = [answer for answer, count in counts.items() for _ in range(count)]
    examples = [Example(n, "1", "what?", (a,), a, "other", "what") for n, a in enumerate(labels)]
    return Split("own", name, examples, images or {})


def test_a_small_folder_keeps_all_answers_and_its_own_test_split(drawn_folder: Path) -> None:
    changes = {"training.seed": 3, "model.layers": 1}
    recipe = defaults.own_data_recipe(str(drawn_folder), Path("none"), changes)
    assert recipe.data.num_answers == 5 and recipe.data.test == "val"
    assert (recipe.data.features, recipe.data.picture_size) == ("cnn", 64)
    assert recipe.training.epochs == 40 and recipe.training.seed == 3
    assert recipe.model["layers"] == 1 and recipe.changed == ["model.layers"]
    assert recipe.name == drawn_folder.name and recipe.published is None
    again = defaults.own_data_recipe(str(drawn_folder), Path("none"), changes)
    assert again == recipe, "so that --resume finds its run"
    set_by_hand = {"data.num_answers": 2, "training.epochs": 1, "data.test": "train"}
    recipe = defaults.own_data_recipe(str(drawn_folder), Path("none"), set_by_hand)
    assert (recipe.data.num_answers, recipe.training.epochs, recipe.data.test) == (2, 1, "train")
    assert (recipe.data.validation, recipe.training.keep) == (0.1, "best")
    whole = defaults.own_data_recipe(str(drawn_folder), Path("none"), {"data.validation": 0})
    assert whole.training.keep == "last"


def test_a_handful_of_images_is_not_divided(drawn_folder: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        for kind in ("questions", "annotations"):
            path = drawn_folder / f"{name}_{kind}.json"
            records = json.loads(path.read_text())[kind]
            few = sorted({record["image_id"] for record in records})[:5]
            records = [record for record in records if record["image_id"] in few]
            (tmp_path / path.name).write_text(json.dumps({kind: records}))
    (tmp_path / "images").symlink_to(drawn_folder / "images")
    recipe = defaults.own_data_recipe(str(tmp_path), Path("none"), {})
    assert (recipe.data.validation, recipe.training.keep) == (0.0, "last")
    assert "data.validation=0" in defaults.describe_choice(recipe)


def test_answers_by_coverage_and_epochs_by_size() -> None:
    assert defaults.answers_to_keep(split({"yes": 5, "no": 3})) == 2
    many = {f"a{n}": 100 for n in range(1500)} | {f"rare{n}": 1 for n in range(3000)}
    kept = defaults.answers_to_keep(split(many))
    assert 1000 <= kept < 1500 and kept * 100 >= 0.95 * sum(many.values())
    assert defaults.answers_to_keep(split({f"a{n}": 1 for n in range(9000)})) == 5000
    assert [defaults.epochs_for(n) for n in (0, 1_000, 20_000, 400_000)] == [40, 40, 20, 10]


def test_photos_use_vgg19_if_its_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, side in (("photo", 640), ("drawing", 64)):
        Image.new("RGB", (side, side // 2)).save(tmp_path / f"{name}.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    photos = split({"yes": 1}, {n: tmp_path / f"{n}.png" for n in ("photo", "damaged")})
    drawings = split({"yes": 1}, {"drawing": tmp_path / "drawing.png"})
    assert defaults.image_options(photos) == {"data.features": "cnn", "data.picture_size": 128}
    with pytest.raises(Exception, match="missing") as missing:
        cached_checkpoint("vgg19-caffe")
    weights = Path(str(missing.value).partition(": missing")[0])
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert defaults.image_options(photos) == {"data.features": "vgg19-caffe"}
    assert defaults.image_options(drawings)["data.features"] == "cnn"


def test_a_line_before_training_states_coverage_and_prior() -> None:
    run = Run(Path("r"), defaults.load_recipe("easy-vqa", {}), Vocabulary((), ("yes", "no")), {})
    train = split({"yes": 3, "no": 1, "maybe": 1})
    test = split({"yes": 1, "no": 2, "never": 1}, {"1": Path("1.png")}, name="test")
    data = PreparedData(*[None] * 6, train, test, [])  # type: ignore[arg-type]
    line = defaults.coverage_line(run, data)

    assert line.startswith("  0 training and 1 test image; ")
    assert "80.0% of train" in line and "75.0% of test" in line and '"yes" scores 25.0%' in line
