"""Every reader of untrusted files on valid files with small damage.

A reader either returns or raises one clear line. Hypothesis draws a few hundred cases per reader,
always the same ones. For millions of different cases:

    VQA_FUZZ=1000000 python -m pytest tests/faults/test_fuzz.py -s

Then a case is ``random.Random(seed)``; a failure names its seed, and VQA_FUZZ_FROM=SEED VQA_FUZZ=1
repeats it.
"""

import hashlib
import io
import json
import os
import resource
import shutil
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import damaged_bytes, damaged_json, damaged_lines, damaged_value
from PIL import Image
from test_torch_utils import save_tar
from wheel_index import lock_text, make_wheel

from vqa_repro.data import coco_qa, daquar
from vqa_repro.data.folder import load_folder
from vqa_repro.data.images import read_image
from vqa_repro.evaluation import examples, vqa_accuracy
from vqa_repro.evaluation.inference import Predictor
from vqa_repro.features.backbones import load_backbone
from vqa_repro.features.store import StoreWriter, open_store
from vqa_repro.install import bundle_build, bundle_open, checkpoints, locks
from vqa_repro.install.bundle_format import DESCRIPTION, FORMAT, MANIFEST, cut
from vqa_repro.recipe import load_recipe
from vqa_repro.reporting import commands, comparison
from vqa_repro.run import open_run
from vqa_repro.utils.errors import UserError

CASES = int(os.environ.get("VQA_FUZZ", 0))
FIRST = int(os.environ.get("VQA_FUZZ_FROM", 0))
CPU = torch.device("cpu")

Damage = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Reader:
    """``read`` takes a folder with ``files``; each case damages one or two of ``damage``."""

    files: dict[str, bytes]
    damage: dict[str, Damage]
    read: Callable[[Path], object]
    share: float = 1.0  # of the cases: slow readers get fewer


def damaged_zip(data: bytes, rng: Random) -> bytes:
    """Damage the bytes of the archive, or pack one of damaged names and contents."""
    if rng.random() < 0.5:
        return damaged_bytes(data, rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = damaged_lines(old.read(name), rng) if rng.random() < 0.5 else old.read(name)
            prefix = rng.choice(("", "", "", "../", "/", "a/b/", "C:\\", "x\ny/", "é/"))
            new.writestr(prefix + name, content, rng.choice((0, 8, 12, 14)))
    return buffer.getvalue()


def damaged_header(data: bytes, rng: Random) -> bytes:
    """Damage the header of a safetensors file, or its bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5:
        header = damaged_value(header, rng)
    else:  # the JSON in the metadata
        inner = header.get("__metadata__", {})
        for key in inner:
            if key != "format":
                inner[key] = damaged_json(inner[key].encode(), rng).decode(errors="replace")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def damaged_state(data: bytes, rng: Random) -> bytes:
    """Damage the values of a torch.save file, or its bytes."""
    if rng.random() < 0.5:
        return damaged_bytes(data, rng)
    state = damaged_value(torch.load(io.BytesIO(data), weights_only=True), rng)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def toml(values: dict[str, Any]) -> bytes:
    return commands.toml(values).encode()


def damaged_recipe(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.5:
        return damaged_lines(data, rng)
    values = damaged_value(RECIPE, rng)
    if not isinstance(values, dict) or "title" not in values:
        return damaged_bytes(data, rng)
    return commands.toml(values).encode(errors="replace")


RECIPE: dict[str, Any] = {
    "title": "t",
    "base": "easy-vqa",
    "data": {"name": "easy-vqa", "test": "test", "validation": 0.1},
    "model": {"name": "san", "hidden": 16, "layers": 2},
    "training": {"epochs": 3, "learning_rate": 1e-3, "optimizer": "sgd"},
    "published": {"accuracy": 1.0, "source": "s", "others": {"yes/no": 2.0}},
}


def read_run(folder: Path) -> None:
    """Read an untrusted run as the report does."""
    run = open_run(folder)
    comparison.read_metrics(run)
    comparison.read_environment(run)
    comparison.read_log(run)
    examples.read(folder)
    commands.repeat(run)
    comparison.group_runs([comparison.RunSummary.load(folder)])


def ask_run(folder: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    Predictor(open_run(folder), CPU).predict(picture, "is it red?")


def read_checkpoint(folder: Path) -> None:
    open_run(folder).load_checkpoint(lambda line: None)


def read_store(folder: Path) -> None:
    store = open_store(folder / "s.safetensors")
    store.fingerprint()
    store.rows.sum()


def read_backbone(folder: Path) -> None:
    load_backbone("resnet50", folder / "weights.pth")


def read_notes(folder: Path) -> None:
    """Read the notes that checkpoints_setup.py keeps about a download."""
    checkpoint = checkpoints.Checkpoint("toy", "toy-00000000.pth", 4)
    target = folder / checkpoint.filename
    checkpoints.verified_sha256(checkpoint.file, target)
    checkpoints.state_of(checkpoint, folder)
    owner = locks.parse(locks.read(folder / f".{target.name}.in-use") or "")
    assert owner is None or isinstance(owner.is_gone(), bool)


def pictures() -> dict[str, bytes]:
    found = {}
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (16, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        for mode in ("RGB", "L", "P"):
            buffer = io.BytesIO()
            try:
                image.convert(mode).save(buffer, kind, **({"exif": exif} if kind == "jpeg" else {}))
            except (OSError, ValueError):  # formats without this mode
                continue
            found[f"{mode}.{kind}"] = buffer.getvalue()
    return found


def read_pictures(folder: Path) -> None:
    for path in folder.iterdir():
        read_image(path, 8)


def one_file(
    name: str, content: bytes, damage: Damage, read: Callable[[Path], object], share: float = 1.0
) -> Reader:
    return Reader({name: content}, {name: damage}, read, share)


def make_readers(run: Path, data: Path, scratch: Path) -> dict[str, Reader]:
    """Return the readers for the files of a finished ``run``, its ``data`` set and others."""
    return (
        of_runs(run)
        | of_data(data)
        | of_features(scratch)
        | of_checkpoints(scratch)
        | of_bundles(scratch)
    )


def of_runs(run: Path) -> dict[str, Reader]:
    names = [path.name for path in run.glob("*.json")]
    names += ["log.jsonl", "model.safetensors", "checkpoint.pt"]
    names += [f"gallery/{path.name}" for path in (run / "gallery").iterdir()]
    files = {name: (run / name).read_bytes() for name in names}
    reported: dict[str, Damage] = {name: damaged_json for name in names if name.endswith(".json")}
    reported |= {"log.jsonl": damaged_lines, "gallery/1.jpg": damaged_bytes}
    predicted: dict[str, Damage] = {
        name: damaged_json for name in ("recipe.json", "vocabulary.json", "features.json")
    }
    predicted["model.safetensors"] = damaged_header
    state: dict[str, Damage] = {"checkpoint.pt": damaged_state}
    return {
        "run folder": Reader(files, reported, read_run, 0.3),
        "run that is asked": Reader(files, predicted, ask_run, 0.05),
        "training checkpoint": Reader(files, state, read_checkpoint, 0.05),
        "recipe": one_file(
            "r.toml", toml(RECIPE), damaged_recipe, lambda f: load_recipe(str(f / "r.toml"), {})
        ),
    }


def of_data(data: Path) -> dict[str, Reader]:
    few = {}
    for split in ("train", "val"):
        for what in ("questions", "annotations"):
            records = json.loads((data / f"{split}_{what}.json").read_bytes())[what][:4]
            few[f"{split}_{what}.json"] = json.dumps({what: records}).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as new:
        for field, line in [
            *(("questions", "is it"), ("answers", "red"), ("img_ids", "12"), ("types", "2"))
        ]:
            new.writestr(f"train/{field}.txt", f"{line}\n" * 4)
    pairs = b"what is under the table in the image3 ?\nchair\nhow many in image4 ?\n2\n"
    answers = b'[{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "no"}]'
    return {
        "VQA JSON": Reader(
            few, dict.fromkeys(few, damaged_json), lambda f: load_folder(f, "train")
        ),
        "zip": one_file(
            coco_qa._ZIP, archive.getvalue(), damaged_zip, lambda f: coco_qa.load(f, "train")
        ),
        "DAQUAR text": one_file(
            "qa.894.raw.train.txt", pairs, damaged_lines, lambda f: daquar.load(f, "train")
        ),
        "results": one_file(
            "r.json", answers, damaged_json, lambda f: vqa_accuracy.read_results(f / "r.json")
        ),
    }


def of_features(scratch: Path) -> dict[str, Reader]:
    path = scratch / "s.safetensors"
    writer = StoreWriter(path, ["a", "b", "c"], (2, 3), np.float16, {"backbone": "x", "size": 4})
    for row in range(3):
        writer.write(row, np.ones((2, 3), np.float16))
    writer.finish({"d": "missing"})
    shown = {
        f"picture: {name}": one_file(name, content, damaged_bytes, read_pictures, 0.05)
        for name, content in pictures().items()
    }
    return {
        "feature store": one_file(path.name, path.read_bytes(), damaged_header, read_store),
        **shown,
    }


def of_checkpoints(scratch: Path) -> dict[str, Reader]:
    with torch.device("meta"):
        network = torchvision.models.resnet50()
    # All of its tensors, each one expanded number: a small file.
    state = {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in network.state_dict().items()
    }
    new_format, old_format = io.BytesIO(), io.BytesIO()
    torch.save(state, new_format)
    torch.save(state, old_format, _use_new_zipfile_serialization=False)
    save_tar({key: value for key, value in state.items() if value.ndim}, scratch / "tar.pth")
    notes = {
        ".toy-00000000.pth.verified.json": {"size": 4, "mtime_ns": 1, "inode": 1, "sha256": "00"},
        ".toy-00000000.pth.in-use": f"{2**30} 1 {socket.gethostname()} 2020-01-01 00:00:00",
        "toy-00000000.pth.part.json": {"url": "http://h/", "validator": "v", "length": 4},
    }
    noted = {name: json.dumps(note).encode() for name, note in notes.items()}
    parts = {"toy-00000000.pth.part": b"abc", "toy-00000000.pth": b"abcd"}
    weights = "weights.pth"
    return {
        "checkpoint": one_file(weights, new_format.getvalue(), damaged_state, read_backbone, 0.03),
        "checkpoint before 1.6": one_file(
            weights, old_format.getvalue(), damaged_bytes, read_backbone, 0.05
        ),
        "checkpoint before 0.2": one_file(
            weights, (scratch / "tar.pth").read_bytes(), damaged_bytes, read_backbone, 0.05
        ),
        "notes of a download": Reader(
            noted | parts, dict.fromkeys(noted, damaged_json), read_notes
        ),
    }


def of_bundles(scratch: Path) -> dict[str, Reader]:
    """Return the readers of a bundle with two wheels, one in three parts, and a checkpoint."""
    project, bundle = scratch / "project", scratch / "bundle"
    (bundle / "wheels").mkdir(parents=True)
    (bundle / "checkpoints").mkdir()
    project.mkdir()
    make_wheel(bundle / "wheels", "alpha", "1.0", {"alpha.py": b"version = 1\n"})
    make_wheel(bundle / "wheels", "big", "1.0", {"big.py": b"#" * 2000})
    (project / "wordnet.lock").write_text("")
    (project / "jupyter.lock").write_text(lock_text(bundle / "wheels", "alpha==1.0"))
    locked = lock_text(bundle / "wheels", "alpha==1.0", "big==1.0")
    (project / "requirements.lock").write_text(locked)
    (bundle / "checkpoints/toy-00000000.pth").write_bytes(b"abc")
    locks = bundle_open.read_locks(project, "cu130")
    about = {
        **{"format": FORMAT, "python": "3.12", "platform": bundle_open.platform_tag()},
        "torch": "cu130",
        "locks": {name: hashlib.sha256(text).hexdigest() for name, text in locks.items()},
    }
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    names = [path.relative_to(bundle).as_posix() for path in paths]
    bundle_build.describe(
        bundle,
        about,
        {name: cut(path, name, 1000) for name, path in zip(names, paths, strict=True)},
    )
    files = {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file()
    }

    def open_(folder: Path) -> None:
        with mock.patch.object(bundle_open, "PROJECT", project):
            bundle_open.open_bundle(folder, scratch / "into", "3.12", "cu130")

    def open_forged(folder: Path) -> None:
        """Make the manifest agree with the damaged description, as a forger would."""
        digest = hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
        manifest = files[MANIFEST].decode().splitlines()
        kept = [line for line in manifest if not line.endswith(f"  {DESCRIPTION}")]
        text = "\n".join([*kept, f"{digest}  {DESCRIPTION}", ""])
        (folder / MANIFEST).write_text(text)
        try:
            open_(folder)
        finally:
            (folder / MANIFEST).write_bytes(files[MANIFEST])

    pieces = dict.fromkeys(files, damaged_bytes)
    return {
        "bundle": Reader(
            files, {**pieces, MANIFEST: damaged_lines, DESCRIPTION: damaged_json}, open_
        ),
        "forged bundle": Reader(files, {DESCRIPTION: damaged_json}, open_forged, 0.3),
    }


@pytest.fixture(scope="module")
def readers(
    finished: Path, drawn_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Reader]:
    return make_readers(finished, drawn_folder, tmp_path_factory.mktemp("valid"))


NAMES = [
    *("run folder", "run that is asked", "training checkpoint", "recipe"),
    *("VQA JSON", "zip", "DAQUAR text", "results", "feature store"),
    *("checkpoint", "checkpoint before 1.6", "checkpoint before 0.2", "notes of a download"),
    *("bundle", "forged bundle"),
    *(f"picture: {name}" for name in pictures()),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused_in_one_line(
    readers: dict[str, Reader],
    name: str,
    tmp_path: Path,
    record_property: Callable[[str, int], None],
) -> None:
    reader = readers[name]
    folder = tmp_path / "f"
    for file, content in reader.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    outside = sorted(tmp_path.iterdir())
    reader.read(folder)  # the undamaged file must be readable
    counts = {"read": 0, "refused": 0}

    def case(rng: Random) -> None:
        chosen = rng.choice(list(reader.damage))
        (folder / chosen).write_bytes(reader.damage[chosen](reader.files[chosen], rng))
        try:
            reader.read(folder)
            counts["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) > 10
            counts["refused"] += 1
        finally:
            (folder / chosen).write_bytes(reader.files[chosen])

    if CASES:
        for seed in range(FIRST, FIRST + max(1, round(CASES * reader.share))):
            try:
                case(Random(seed))
            except BaseException as error:
                error.add_note(f"{name}: VQA_FUZZ_FROM={seed} VQA_FUZZ=1 repeats it")
                raise
    else:
        few = settings(
            max_examples=max(10, round(200 * reader.share)),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        few(given(st.randoms(use_true_random=False))(case))()
    assert sorted(tmp_path.iterdir()) == outside
    record_property("recovered", counts["read"])
    record_property("refused", counts["refused"])
    if CASES:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{name}: {counts}, peak {peak} MiB")
    shutil.rmtree(folder)
