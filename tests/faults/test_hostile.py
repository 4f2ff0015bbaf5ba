"""Files that try to run code, write elsewhere or exhaust memory are refused in one line.

Each is read in its own process, whose memory is measured.
"""

import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from children import ready
from conftest import LIMIT

from vqa_repro import evaluate, predict, report, train
from vqa_repro.data import coco_qa, images
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.evaluation import vqa_accuracy
from vqa_repro.features import backbones, store
from vqa_repro.models import network
from vqa_repro.recipe import from_json, load_recipe
from vqa_repro.reporting import commands
from vqa_repro.run import Run, open_run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import MAX_JSON

MANY = 2**31  # bytes that a file of a few thousand bytes claims to hold


class Code:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.touched),)


def load_weights(path: Path) -> None:
    network.load_weights(network.VQAModel(None, torch.nn.Linear(2, 2), 1.0), path)


def load_checkpoint(path: Path) -> None:
    folder = path.parent
    Run(folder, RECIPE, Vocabulary(("<pad>", "<unk>"), ("a",)), {}).load_checkpoint(print)


RECIPE = load_recipe("easy-vqa", {})
READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint.pt": load_checkpoint,
    "weights.pth": lambda path: backbones.load_backbone("resnet50", path),
    "picture": lambda path: images.read_image(path, 64),
    "store.safetensors": store.open_store,
    "model.safetensors": load_weights,
    "cocoqa-2015-05-17.zip": lambda path: coco_qa.load(path.parent, "train"),
    "results.json": vqa_accuracy.read_results,
    "recipe.json": lambda path: open_run(path.parent),
    "recipe.toml": lambda path: load_recipe(str(path), {}),
}


def read(path: Path, outcome_file: Path) -> None:
    """Read a file in its own process; write the outcome and the memory used to ``outcome_file``."""
    sys.stdout = outcome_file.open("w")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        READERS[path.name](path)
        print("read")
    except UserError as error:
        print("refused:", error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    sys.stdout.flush()


def saved(value: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def squeezed(content: bytes) -> bytes:
    """Compress the parts of a torch.save file."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def tar(pickles: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for name, content in pickles.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def png(side: int) -> bytes:
    """Return a small white image whose header claims ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(999)))
        + chunk(b"IEND", b"")
    )


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)
    return buffer.getvalue()


def claims_more(archive: bytes) -> bytes:
    """Set the first member's unpacked size in the directory to two gigabytes."""
    at = archive.index(b"PK\x01\x02") + 24
    return archive[:at] + struct.pack("<I", MANY) + archive[at + 4 :]


def safetensors(header: Any, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def store_of(shape: list[int]) -> bytes:
    metadata = {"format": "vqa_repro-store-1", "keys": "[]", "made_by": "{}"}
    rows = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    return safetensors({"__metadata__": metadata, "rows": rows})


def eps(touched: Path) -> bytes:
    """Return an image that is a program; Pillow would pass it to Ghostscript."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        + f"({touched}) (w) file closefile showpage\n%%EOF\n".encode()
    )


def linked(touched: Path) -> bytes:
    """Return a checkpoint in the old format whose storages link to a file elsewhere."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        info = tarfile.TarInfo("storages")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return buffer.getvalue()


STRANGE_RECIPE = {
    "title": "t",
    "data": {"name": "x"},
    "training": {"epochs": 1, "learning_rate": 0.1},
    "model": {"name": "san"},
}
LOG_OF_GIGABYTES = b"\x80\x02r\xff\xff\xff\x3f."  # "remember object number 2**30"

HOSTILE: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    # Description: file name, content, part of the error.
    "code in a training checkpoint": (
        "checkpoint.pt",
        lambda touched: saved({"step": Code(touched)}),
        "all checkpoints are damaged",
    ),
    "code in weights": ("weights.pth", lambda t: saved({"w": Code(t)}), "not a checkpoint"),
    "code in weights of old torch": (
        "weights.pth",
        lambda touched: saved({"w": Code(touched)}, _use_new_zipfile_serialization=False),
        "not a checkpoint",
    ),
    "code in weights of oldest torch": (
        "weights.pth",
        lambda touched: tar({"storages": pickle.dumps(Code(touched), 2)}),
        "not a checkpoint (it requests posix.mkdir)",
    ),
    "code in a plain pickle": ("weights.pth", lambda t: pickle.dumps(Code(t)), "not a checkpoint"),
    "code in a safetensors file": (
        "model.safetensors",
        lambda touched: pickle.dumps(Code(touched)),
        "damaged",
    ),
    "a program as a picture": ("picture", eps, "PostScript"),
    "a link out of an archive": ("weights.pth", linked, "not a checkpoint"),
    "a path out of a zip": (
        "cocoqa-2015-05-17.zip",
        lambda touched: zip_of({"../../train/questions.txt": b"x"}),
        "unsafe name",
    ),
    "a run folder's name elsewhere": (
        "recipe.toml",
        lambda touched: b'base = "easy-vqa"\nname = "../../elsewhere"\n',
        "is a path",
    ),
    "a bomb in a training checkpoint": (
        "checkpoint.pt",
        lambda touched: squeezed(saved({"x": torch.zeros(2**26)})),
        "it is compressed",
    ),
    "a bomb in weights": (
        "weights.pth",
        lambda touched: squeezed(saved({"x": torch.zeros(2**26)})),
        "it is compressed",
    ),
    "a bomb in a zip": (
        "cocoqa-2015-05-17.zip",
        lambda touched: claims_more(
            zip_of({f"train/{field}.txt": b"1" for field in coco_qa._FIELDS})
        ),
        "2,147,483,648 bytes unpacked",
    ),
    "a bomb of a picture": ("picture", lambda touched: png(20_000), "too many pixels"),
    "a picture of impossible size": ("picture", lambda t: png(2**31 - 1), "too many pixels"),
    "a header of gigabytes": (
        "store.safetensors",
        lambda touched: struct.pack("<Q", MANY) + b"{}",
        "header's length is impossible",
    ),
    "weights with a header of gigabytes": (
        "model.safetensors",
        lambda touched: struct.pack("<Q", MANY) + b"{}",
        "damaged",
    ),
    "rows of terabytes": ("store.safetensors", lambda t: store_of([0, 2**40]), ""),
    "rows without end": ("store.safetensors", lambda t: store_of([2**40, 2**40]), "do not match"),
    "a pickle that wants gigabytes": (
        "weights.pth",
        lambda touched: tar({"storages": LOG_OF_GIGABYTES}),
        "not a checkpoint",
    ),
    "tensors without end": (
        "weights.pth",
        lambda touched: saved({"conv1.weight": torch.zeros(1).half().expand(2**40)}),
        "keys missing",
    ),
    "JSON without end": ("results.json", lambda t: b"[" * 10_000_000, "nested too deep"),
    "a number without end": ("results.json", lambda t: b"9" * 10_000_000, "not a data set"),
    "a run folder of gigabytes": ("recipe.json", lambda t: b" " * (MAX_JSON + 1), "more than"),
    "control characters for the terminal": (
        "recipe.json",
        lambda t: json.dumps(STRANGE_RECIPE | {"\x1b[2J\n": 1}).encode(),
        "\\x1b[2J\\n",
    ),
}


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    return ready()


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(forks: ForkServerContext, what: str, tmp_path: Path) -> None:
    name, content, words = HOSTILE[what]
    folder, touched = tmp_path / "given", tmp_path / "touched"
    folder.mkdir()
    (folder / name).write_bytes(content(touched))
    process = forks.Process(target=read, args=(folder / name, tmp_path / "output"))
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 0
    *_, outcome, peak = lines = (tmp_path / "output").read_text().splitlines()
    assert outcome.startswith("refused: ") or not words
    assert any(words in line for line in lines)
    assert not touched.exists()
    assert {path.name for path in folder.iterdir()} <= {name, "checkpoint.pt"}
    assert int(peak) < 150, f"{peak} MiB"


# ---------------------------------------------------------------- sizes without end

SIZES: list[tuple[str, Any, str]] = [
    # An option of a recipe, its value, part of the error.
    ("model.hidden", 2**16, "does not fit recipe.json|parameters need"),
    ("model.hidden", 10**9, "from 1 to 65,536"),
    ("model.hidden", -1, "from 1 to 65,536"),
    ("model.embedding", 2**62, "from 1 to 65,536"),
    ("model.attention", 2**31, "from 1 to 65,536"),
    ("model.layers", 10**9, "a whole number from 1 to 65,536"),
    ("model.layers", 2**16, "1 to 100"),
    ("model.layers", 0, "from 1 to 65,536"),
    ("model.filters", [10**9] * 3, "3 whole numbers from 1 to 65,536"),
    ("model.filters", [1] * 10**6, "3 whole numbers from 1 to 65,536"),
    ("training.batch_size", 0, "batch_size: Expected `int` >= 1"),
    ("training.epochs", 2**62, "epochs: Expected `int` <= 1000000"),
    ("training.decade", 0, "decade: Expected `int` >= 1"),
    ("training.learning_rate", -1.0, "learning_rate: Expected `float` >= 0"),
    ("training.seed", 2**62, "seed: Expected `int` <= 4294967296"),
    ("data.picture_size", 10**6, "picture_size: Expected `int` <= 1024"),
    ("data.num_answers", -1, "num_answers: Expected `int` >= 1"),
    ("data.validation", 1e308, "validation: Expected `float` <= 1"),
]
MODELS = [
    *(("hiecoatt", option) for option in ("hidden", "last_hidden")),
    *(("question-only", option) for option in ("hidden", "embedding", "mlp")),
    ("bag-of-words", "embedding"),
    *(("deeper-lstm", option) for option in ("hidden", "embedding", "common")),
    *(("show-ask-attend", option) for option in ("hidden", "glimpses", "mlp")),
]


def changed(recipe: dict[str, Any], option: str, value: Any) -> dict[str, Any]:
    section, _, key = option.partition(".")
    return recipe | {section: recipe[section] | {key: value}}


def ask_all_verbs(run: Path, recipe: dict[str, Any], outcome_file: Path) -> None:
    """Pass the recipe to every verb that takes one, in its own process; measure the memory."""
    sys.stdout = outcome_file.open("w")
    # The first tensor on "meta" imports many modules.
    with torch.device("meta"):
        torch.nn.LSTM(1, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    toml = run / "recipe.toml"
    toml.write_text(commands.toml({k: v for k, v in recipe.items() if v is not None}))
    picture = next(Path(recipe["data"]["name"], "images").iterdir())
    here = ["--root", str(run), "--device", "cpu"]
    for main, arguments in (
        (predict.main, ["--run", run, "--image", picture, "--question", "is it red?", *here[2:]]),
        (evaluate.main, ["--run", run, *here]),
        (report.main, [run, "--out", run / "report.html"]),
        (train.main, ["--recipe", toml, "--out", run / "trained", *here]),
    ):
        try:
            main(list(map(str, arguments)))
            print("done")
        except UserError as error:
            print("refused:", error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    sys.stdout.flush()


@pytest.mark.parametrize(
    "option, value, words", SIZES, ids=[f"{option}={value!r:.20}" for option, value, _ in SIZES]
)
def test_sizes_beyond_any_memory_are_refused(
    forks: ForkServerContext, finished: Path, tmp_path: Path, option: str, value: Any, words: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    recipe = changed(json.loads((run / "recipe.json").read_text()), option, value)
    if option == "model.filters":
        recipe = changed(recipe, "model.question", "cnn")
    (run / "recipe.json").write_text(json.dumps(recipe))
    process = forks.Process(target=ask_all_verbs, args=(run, recipe, tmp_path / "output"))
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 0
    *lines, peak = (tmp_path / "output").read_text().splitlines()
    refusals = [line for line in lines if line.startswith("refused: ")]
    # The report does not build the model, so it may read the run.
    assert len(refusals) == 4 - lines.count("done") and lines.count("done") <= 1
    assert all(re.search(words, line) for line in refusals), lines
    assert int(peak) < 150, f"{peak} MiB"


@pytest.mark.parametrize("name, option", MODELS)
@pytest.mark.parametrize("value", [2**16, 2**31, 10**40])
def test_sizes_of_every_model_are_checked(name: str, option: str, value: int) -> None:
    values = {"title": "t", "data": {"name": "x"}, "training": {"epochs": 1, "learning_rate": 1.0}}
    recipe = from_json({**values, "model": {"name": name, option: value}}, "recipe.json")
    features = {"channels": 2**16, "scale": 1.0}
    run = Run(Path("run"), recipe, Vocabulary(("<pad>", "<unk>"), ("a",)), features)
    if value == 2**16:  # the largest valid value: no memory is allocated
        with torch.device("meta"):
            network.build(run)
        return
    with pytest.raises(UserError, match=rf"{option} = {value}: expected .* 65,536"):
        network.build(run)
