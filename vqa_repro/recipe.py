"""A recipe is one row of a table: data, model, training, and the published number beside it.

Recipes are TOML files in ``vqa_repro/recipes/``; ``--recipe`` takes a name from there or a path.
"""

import dataclasses
import math
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vqa_repro.utils.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Data:
    name: str  # a data set, or a folder of VQA-format JSON and pictures
    train: str = "train"
    test: str = "test"
    validation: float = 0.05  # share of the training pictures held out of training
    # "cnn": trained along; "none": no picture is seen; "vgg19", "vgg19-caffe", ...: of a frozen
    # backbone; else the path of a feature store.
    features: str = "cnn"
    # Scale of region vectors: "unit" mean square, "none" (raw), or "auto": raw for a released form.
    feature_scale: Literal["auto", "unit", "none"] = "auto"
    picture_size: int = 64  # pixels a side, where the network is trained along
    num_answers: int = 1000
    single_answers: bool = False  # leave out questions with several answers ("table, chair")


@dataclass(frozen=True)
class Training:
    epochs: int
    learning_rate: float
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0  # adamw: decoupled; else added to the gradient, biases included
    embedding_rate: float = 1.0  # word embeddings learn so many times faster
    clip: float = 0.0  # largest L2 norm of a gradient; 0 leaves gradients as they are
    clip_per: Literal["tensor", "all"] = "all"
    schedule: Literal["cosine", "constant", "exponential"] = "cosine"
    decade: int = 360_000  # steps in which an exponential rate falls to a tenth
    answers: Literal["label", "sampled", "soft"] = "label"  # what is learnt
    batch_size: int = 100  # questions
    order: Literal["grouped", "iid"] = "iid"  # whole pictures, or questions drawn singly
    regions: float = 1.0  # share of a picture's regions, drawn anew for every batch, that it sees
    keep: Literal["last", "best"] = "last"  # the weights of which epoch, by the held-out pictures
    patience: int = 0  # stop after so many epochs without a better one; 0: never
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products
    seed: int = 0


@dataclass(frozen=True)
class Published:
    accuracy: float  # percent, on the recipe's test split
    source: str
    # Other figures of the same row, by the names of metrics.json: "wups_0.9", "yes/no", "color".
    others: dict[str, float] = field(default_factory=dict)
    note: str = ""  # what to mind in a comparison


@dataclass(frozen=True)
class Recipe:
    title: str
    data: Data
    model: dict[str, Any]  # "name" and the model's constructor arguments
    training: Training
    published: Published | None = None
    name: str = ""
    changed: list[str] = field(default_factory=list)  # options set away from the named recipe's

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# The least and the most that makes sense; recipes may come from strangers. Other numbers: from 0.
_RANGES = {
    "validation": (0, 1),
    "regions": (0, 1),
    "picture_size": (8, 1024),
    "num_answers": (1, 10**9),
    "epochs": (1, 10**6),
    "decade": (1, 10**12),
    "batch_size": (1, 10**9),
    "seed": (0, 2**32),
}
_SECTIONS = {"data": Data, "training": Training, "published": Published}


def recipe_names() -> list[str]:
    """The recipes of the package. Files whose names begin with "_" are only built upon."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem[0] != "_")


def load_recipe(name: str, changes: dict[str, Any]) -> Recipe:
    """The recipe called ``name`` (or the TOML file of that path) with ``changes`` made to it.

    ``changes`` maps "section.key" to a value. Raises UserError for an unknown recipe, section or
    key and for a value of the wrong kind.
    """
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
        if not path.is_file():
            raise UserError(
                f"--recipe {name}: no such recipe; there are {', '.join(recipe_names())}"
            )
    raw = _read(path)
    model = raw.get("model")
    before = model.get("name") if isinstance(model, dict) else None
    another_model = changes.get("model.name", before) != before
    if another_model:
        raw["model"] = {}  # as in a file: another model has other options
    for key, value in changes.items():
        section, _, option = key.partition(".")
        if not option:
            raise UserError(f"{key}: name an option as section.key, for example training.epochs")
        values = raw.setdefault(section, {})
        if values.get(option) != value and key != "training.seed":
            raw["changed"] = sorted({*raw.get("changed", []), key})
        values[option] = value
    raw.setdefault("name", path.stem)
    another_data_set = "data.name" in raw.get("changed", [])
    if another_data_set or another_model:
        # The published number and the recipe's title are not about it.
        raw.pop("published", None)
        data = Path(str(raw["data"]["name"])).name
        raw["title"] = f"{raw.get('model', {}).get('name')} on {data}"
        if another_data_set:
            raw["name"] = data
    return from_json(raw, str(path))


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a recipe's file, laid over that of the recipe it is ``base``d on.

    A [model] with a name begins anew: another model has other options.
    """
    if path in above:
        raise UserError(f"{path}: is based on itself")
    try:
        with path.open("rb") as file:
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
    """A value as written in TOML: 3, 0.5, true, [1, 2]; anything else is the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def from_json(raw: Any, where: str) -> Recipe:
    """A checked Recipe from plain values. Raises UserError, naming ``where`` and the key."""
    if not isinstance(raw, dict):
        raise UserError(f"{where}: is not a table of options")
    raw = dict(raw)
    name = raw.get("name", "")
    if isinstance(name, str) and (name in (".", "..") or "/" in name or "\\" in name):
        raise UserError(f"{where}: name = {name!r} is a path; run folders are called by it")
    sections: dict[str, Any] = {}
    for section, cls in _SECTIONS.items():
        values = raw.pop(section, None)
        if values is not None:  # a recipe without a published number has none
            sections[section] = _checked(cls, values, f"{where}: [{section}]")
    model = raw.pop("model", None)
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise UserError(f"{where}: [model] needs a name")
    return typing.cast(Recipe, _checked(Recipe, {**raw, **sections, "model": model}, where))


def upgrade(raw: Any) -> Any:
    """Return the stored recipe ``raw`` with what its model was before the option existed.

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


def _checked(cls: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a table of options")
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in names:
            raise UserError(f"{where} has no option {key!r}; there are {', '.join(sorted(names))}")
        if not _fits(value, hints[key]):
            raise UserError(f"{where} {key} = {value!r}: expected {_in_words(hints[key])}")
        least, most = _RANGES.get(key, (0, math.inf))
        if type(value) in (int, float) and not least <= value <= most:
            limit = "" if most == math.inf else f" and at most {most:,}"
            raise UserError(f"{where} {key} = {value!r}: expected at least {least:,}{limit}")
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise UserError(f"{where} needs the option {f.name!r}")
    return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint in (str, int, bool):
        return type(value) is hint
    if hint is float:
        return type(value) in (int, float)
    if hint == dict[str, float]:
        return isinstance(value, dict) and all(type(v) in (int, float) for v in value.values())
    if hint == list[str]:
        return isinstance(value, list) and all(type(v) is str for v in value)
    return True  # a section, already checked


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(
        hint, "a table of numbers"
    )
