"""A recipe is one row of a table: data, model, training, and the published result to compare with.

Recipes are TOML files in ``vqa_repro/recipes/``; ``--recipe`` takes a name from there or a path.
"""

import dataclasses
import sys
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import open_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"

MOST_EPOCHS, HIGHEST_SEED = 10**6, 2**32
# Recipes may be untrusted, so every number has a range.
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class Data:
    """The data set, its splits, and the features of its images."""

    name: str  # a data set, or a folder of VQA-format JSON and images
    train: str = "train"
    test: str = "test"
    # "2/5": train on four fifths of the training split, test on the second fifth (data/folds.py)
    fold: Annotated[
        str,
        msgspec.Meta(pattern=r"^([1-9]\d{0,2}/[1-9]\d{0,2})?$", description="K/N, for example 2/5"),
    ] = ""
    validation: Share = 0.05  # share of the training images in the validation split
    # "cnn": a CNN trained with the model; "none": no image; "vgg19", "vgg19-caffe", ...: a frozen
    # backbone; otherwise the path of a feature store.
    features: str = "cnn"
    # Scale of region vectors: "unit" mean square, "none" (raw), or "auto": raw for a released form.
    feature_scale: Literal["auto", "unit", "none"] = "auto"
    picture_size: Annotated[int, msgspec.Meta(ge=8, le=1024)] = 64  # pixels a side, for "cnn"
    num_answers: Count = 1000
    single_answers: bool = False  # skip questions with several answers ("table, chair")

    @property
    def tested_on(self) -> str:
        """What the run's results are for: the test split, or a fold of the training split."""
        return f"{self.train}, fold {self.fold}" if self.fold else self.test


@dataclass(frozen=True)
class Training:
    """The optimiser, its schedule, the batches and the stopping rule."""

    epochs: Annotated[int, msgspec.Meta(ge=1, le=MOST_EPOCHS)]
    learning_rate: NotNegative
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    momentum: NotNegative = 0.9  # of sgd
    # adamw: decoupled; otherwise added to the gradient, biases included
    weight_decay: NotNegative = 0.0
    embedding_rate: NotNegative = 1.0  # learning-rate multiplier for word embeddings
    clip: NotNegative = 0.0  # largest L2 norm of a gradient; 0: no clipping
    clip_per: Literal["tensor", "all"] = "all"
    schedule: Literal["cosine", "constant", "exponential"] = "cosine"
    # steps in which an exponential learning rate falls to a tenth
    decade: Annotated[int, msgspec.Meta(ge=1, le=10**12)] = 360_000
    answers: Literal["label", "sampled", "soft"] = "label"  # the training target
    batch_size: Count = 100  # questions
    order: Literal["grouped", "iid"] = "iid"  # shuffle whole images, or single questions
    regions: Share = 1.0  # share of an image's regions that each batch sees, drawn at random
    init_from: str = ""  # a finished run whose weights are the initial ones; "": none
    word_vectors: str = ""  # a file of word vectors (GloVe's text format) to start from; "": none
    # decay of the moving average of the weights that is validated and kept; 0: the weights as such
    ema: Share = 0.0
    # weight of R-Drop's divergence between two passes with other dropout masks; 0: one pass
    r_drop: NotNegative = 0.0
    # share of the loss on answers similar to the label (WUP of 0.9 or more); 0: the label alone
    similar_answers: Share = 0.0
    teachers: list[str] = field(default_factory=list)  # finished runs to be distilled
    distillation: Share = 0.5  # share of the loss on the teachers' answers
    temperature: Annotated[float, msgspec.Meta(ge=0.1, le=100)] = 2.0  # of those answers
    # images, drawn at random, about which the teachers answer each question too
    teacher_images: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    keep: Literal["last", "best"] = "last"  # which epoch's weights, by validation accuracy
    # epochs between two looks at the test, which are logged and choose nothing; 0: none
    test_every: Annotated[int, msgspec.Meta(ge=0)] = 0
    patience: Annotated[int, msgspec.Meta(ge=0)] = 0  # early stopping, in epochs; 0: never
    # Of matrix products. "tf32": float32 numbers, whose products a GPU rounds to 11 bits.
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    seed: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_SEED)] = 0


@dataclass(frozen=True)
class Published:
    """The published result of a paper's table that a recipe reproduces."""

    accuracy: NotNegative  # percent, on the recipe's test split
    source: str
    # Other figures of the same row, by the names of metrics.json: "wups_0.9", "yes/no", "color".
    others: dict[str, float] = field(default_factory=dict)
    note: str = ""  # caveats of the comparison


@dataclass(frozen=True)
class Recipe:
    """One row of a table."""

    title: str
    data: Data
    model: dict[str, Any]  # "name" and the constructor arguments of the model
    training: Training
    published: Published | None = None
    name: str = ""
    changed: list[str] = field(default_factory=list)  # options that differ from the named recipe

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def options(self) -> dict[str, Any]:
        """Return all options, as "section.key": value."""
        tables = self.to_json()
        return {
            f"{section}.{key}": value
            for section in ("data", "model", "training")
            for key, value in tables[section].items()
        }


_TABLES = ("data", "model", "training", "published")
_SECTIONS = {"data": Data, "training": Training, "published": Published}


def recipe_names() -> list[str]:
    """Return the names of the package's recipes. Files that begin with "_" are only bases."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem[0] != "_")


def load_recipe(name: str, changes: dict[str, Any]) -> Recipe:
    """Return the recipe called ``name``, or the TOML file at that path, with ``changes`` applied.

    ``changes`` maps "section.key" to a value. Raise UserError for an unknown recipe, section or
    key, and for a value of the wrong type.
    """
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
        if not path.is_file():
            raise UserError(
                f"--recipe {name}: no such recipe; there are {', '.join(recipe_names())}"
            )
    raw = _read(path)
    for section in ("data", "model", "training"):
        if not isinstance(raw.get(section), dict):
            raise UserError(f"{path}: has no table [{section}]")
    before = raw["model"].get("name")
    another_model = changes.get("model.name", before) != before
    if another_model:
        raw["model"] = {}  # as in a file: another model has other options
    for key, value in changes.items():
        section, _, option = key.partition(".")
        if not option:
            raise UserError(f"{key}: name an option as section.key, for example training.epochs")
        if section not in _TABLES:
            raise UserError(
                f"{key}: there is no section {section!r}; there are {', '.join(_TABLES)}"
            )
        if section in _SECTIONS:
            _refuse_unknown(_SECTIONS[section], [option], f"[{section}]")
        values = raw.setdefault(section, {})
        if values.get(option, _default(section, option)) != value and key != "training.seed":
            raw["changed"] = sorted({*raw.get("changed", []), key})
        values[option] = value
    raw.setdefault("name", path.stem)
    changed = raw.get("changed", [])
    another_data_set = "data.name" in changed
    if another_data_set or another_model:
        # Neither the published number nor the title applies.
        raw.pop("published", None)
        data = Path(str(raw["data"].get("name"))).name
        raw["title"] = f"{raw.get('model', {}).get('name')} on {data}"
        if another_data_set:
            raw["name"] = data
    other_questions = {"data.train", "data.test", "data.single_answers"}.intersection(changed)
    if other_questions or raw.get("data", {}).get("fold"):
        raw.pop("published", None)
    return from_json(raw, str(path), changes)


def _default(section: str, option: str) -> Any:
    """Return the value of an option that a recipe leaves out; None for [model]'s."""
    known = dataclasses.fields(_SECTIONS[section]) if section in _SECTIONS else ()
    found = next((field for field in known if field.name == option), None)
    if found is None:
        return None
    listed = found.default_factory is not dataclasses.MISSING
    return [] if listed else found.default


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a recipe file, merged over that of its ``base``.

    A [model] with a name replaces that of the base: another model has other options.
    """
    if path in above:
        raise UserError(f"{path}: is based on itself")
    try:
        with open_regular(path) as file:
            raw: dict[str, Any] = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    base = raw.pop("base", None)
    if base is None:
        return raw
    merged = _read(FOLDER / f"{base}.toml", (*above, path))
    for key, value in raw.items():
        below = merged.get(key)
        another_model = key == "model" and isinstance(value, dict) and "name" in value
        if isinstance(value, dict) and isinstance(below, dict) and not another_model:
            merged[key] = {**below, **value}
        else:
            merged[key] = value
    return merged


def parse_value(text: str) -> Any:
    """Return the value of a TOML literal (3, 0.5, true, [1, 2]); any other text stays text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def from_json(raw: Any, where: str, changes: Collection[str] = ()) -> Recipe:
    """Return the recipe that plain values describe; those at the keys ``changes`` are the user's.

    Raise UserError that names ``where``, but for the user's values, and the key of a value that is
    unknown, missing or wrong.
    """

    def place(key: str) -> str:
        return "" if key.partition("[")[0] in changes else f"{where}: "

    if not isinstance(raw, dict):
        raise UserError(f"{where}: not a table of options")
    name = raw.get("name", "")
    if isinstance(name, str) and (name in (".", "..") or "/" in name or "\\" in name):
        raise UserError(f"{where}: name = {name!r} is a path; run folders are named after it")
    if not isinstance(raw.get("model"), dict) or not isinstance(raw["model"].get("name"), str):
        raise UserError(f"{place('model.name')}[model] needs a name")
    _refuse_unknown(Recipe, raw, where)
    for section, cls in _SECTIONS.items():
        if isinstance(raw.get(section), dict):
            _refuse_unknown(cls, raw[section], f"{where}: [{section}]")
    try:
        return msgspec.convert(raw, Recipe)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`")
        named = f"{key}: {_explain(key, what)}" if key else what
        raise UserError(f"{place(key)}{named}") from None


def upgrade(raw: Any) -> Any:
    """Return the stored recipe ``raw`` with the options that its model had before they existed.

    Recipes stored before ``data.feature_scale`` have HieCoAtt in the paper's form without biases.
    """
    if not (isinstance(raw, dict) and isinstance(raw.get("data"), dict)):
        return raw
    model = raw.get("model")
    if "feature_scale" in raw["data"] or not isinstance(model, dict):
        return raw
    if model.get("name") == "hiecoatt" and model.get("fidelity", "paper") == "paper":
        return {**raw, "model": {"bias": False, **model}}
    return raw


def _refuse_unknown(cls: type[Any], keys: Iterable[str], where: str) -> None:
    names = [each.name for each in dataclasses.fields(cls)]
    for key in keys:
        if key not in names:
            raise UserError(f"{where} has no option {key!r}; there are {', '.join(sorted(names))}")


def _explain(key: str, what: str) -> str:
    """Return what is wrong with an option: ``what``, in words if it has a form, and its choices."""
    section, _, option = key.partition(".")
    if section not in _SECTIONS:
        return what
    hint = typing.get_type_hints(_SECTIONS[section], include_extras=True).get(option)
    if typing.get_origin(hint) is Literal:
        return f"{what}; choose {' or '.join(map(repr, typing.get_args(hint)))}"
    form = next((meta.description for meta in getattr(hint, "__metadata__", ())), None)
    return f"expected {form}" if form else what
