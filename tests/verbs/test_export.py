"""A released run: opened from a file or an address, completely or not at all."""

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import options, run_verb
from fault_server import FaultServer
from safetensors.torch import load_file

import vqa_repro
from vqa_repro import evaluate, predict, report, train
from vqa_repro.export import main
from vqa_repro.recipe import Data
from vqa_repro.release import NAMES, local_run, published_data
from vqa_repro.utils.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vqa_repro"


@pytest.fixture
def release(finished: Path, tmp_path: Path, cache: Path) -> Path:
    out = tmp_path / "release.tar"
    assert main([str(finished), "--out", str(out)]) == 0
    return out


@pytest.fixture
def served(release: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(release.parent)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{release.name}"
    server.shutdown()
    server.server_close()


def test_a_release_answers_as_the_run_does(
    release: Path, finished: Path, drawn_folder: Path
) -> None:
    image, question = drawn_folder / "images" / "1.png", "what color is it?"
    expected = vqa_repro.load(finished, device="cpu").predict(image, question)
    answer = vqa_repro.load(release, device="cpu").predict(image, question)
    assert answer.answers[0][0] == expected.answers[0][0]
    # float16 rounds each weight by at most one part in 2,048.
    assert np.isclose(answer.answers[0][1], expected.answers[0][1], atol=0.02)


def test_it_holds_half_the_weights_a_card_and_checksums(
    release: Path, finished: Path, tmp_path: Path
) -> None:
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", release, "-C", unpacked], check=True)
    assert {path.name for path in unpacked.iterdir()} == NAMES
    weights, original = (load_file(f / "model.safetensors") for f in (unpacked, finished))
    for name, value in original.items():
        assert weights[name].dtype.is_floating_point == value.dtype.is_floating_point
        assert weights[name].element_size() <= value.element_size()
    card = (unpacked / "README.md").read_text()
    accuracy = json.loads((finished / "metrics.json").read_text())["overall"]
    assert (
        card.startswith("---\n") and f"{accuracy}" in card and "visual-question-answering" in card
    )
    for line in (unpacked / "SHA256SUMS").read_text().splitlines():
        checksum, name = line.split("  ")
        assert hashlib.sha256((unpacked / name).read_bytes()).hexdigest() == checksum


def test_the_same_run_gives_the_same_bytes(release: Path, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.TAR"
    assert main([str(finished), "--out", str(other)]) == 0
    assert other.read_bytes() == release.read_bytes()


def test_a_folder_is_a_release_too(finished: Path, tmp_path: Path, drawn_folder: Path) -> None:
    out = tmp_path / "folder"
    assert main([str(finished), "--out", str(out)]) == 0
    image = drawn_folder / "images" / "1.png"
    assert vqa_repro.load(out, device="cpu").predict(image, "is it red?").answers
    with pytest.raises(UserError, match="exists"):
        main([str(finished), "--out", str(out)])


@pytest.mark.parametrize("where", ["folder", "cache"])
def test_a_damaged_unpacked_release_is_refused(
    finished: Path, release: Path, tmp_path: Path, cache: Path, where: str
) -> None:
    folder = name = tmp_path / "folder"
    if where == "folder":
        assert main([str(finished), "--out", str(folder)]) == 0
    else:
        name, folder = release, local_run(release)
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert local_run(name) == folder
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors is missing or damaged; remove this"):
        vqa_repro.load(name, device="cpu")


@pytest.mark.parametrize("name", ["my.run.zip", "my.run.tar.gz", "my.run.TGZ"])
def test_the_name_of_another_archive_is_refused(finished: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"name it my\.run\.tar$"):
        main([str(finished), "--out", str(tmp_path / name)])
    assert not list(tmp_path.iterdir())


def test_what_needs_the_run_itself_refuses_a_release(
    release: Path, drawn_folder: Path, tmp_path: Path, cache: Path
) -> None:
    folder = local_run(release)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in (release, folder):
        with pytest.raises(UserError, match=f"--examples {name}: a release"):
            report.main(["--examples", str(name), "--device", "cpu"])
    with pytest.raises(UserError, match=r"release\.tar: a file, .* unpack it into a folder"):
        report.main([str(release)])
    assert report.main([str(folder), "--out", str(tmp_path / "report.html")]) == 0
    for more in ([], ["--resume"]):
        with pytest.raises(UserError, match="holds a release, whose training cannot be resumed"):
            train.main([*options(drawn_folder, folder, 30), *more])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_from_an_address_with_its_checksum_and_again_without_the_server(
    served: str, release: Path, cache: Path
) -> None:
    address = f"{served}#sha256={hashlib.sha256(release.read_bytes()).hexdigest()}"
    assert (local_run(address) / "recipe.json").is_file()
    assert vqa_repro.load(address, device="cpu").run.vocabulary.answers
    gone = "http://127.0.0.1:9/release.tar" + address[address.index("#") :]
    assert local_run(gone) == local_run(address)
    (cache / f"{address[-64:]}.tar").unlink()  # to save space: the unpacked copy suffices
    assert local_run(gone).parent == cache
    assert not list(cache.glob(".*"))


def test_an_address_with_a_space_and_a_scheme_in_capitals(
    served: str,
    release: Path,
    drawn_folder: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release.rename(release.with_name("my rel.tar"))
    checksum = hashlib.sha256(release.with_name("my rel.tar").read_bytes()).hexdigest()
    address = f"{served.removesuffix('release.tar')}my rel.tar#sha256={checksum}"
    asked = ["--image", str(drawn_folder / "images" / "1.png"), "--question", "is it red?"]
    assert predict.main([address.replace("http:", "HTTP:"), *asked]) == 0
    assert f"({address})\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a b?c d", "http://a b/c"])
def test_an_address_with_a_space_in_the_wrong_place(cache: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be downloaded|not a usable"):
        local_run(f"{name}#sha256={'0' * 64}")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("file:///tmp/my%20rel.tar#sha256=" + "0" * 64, "file:///tmp.* path instead: /tmp/my rel"),
        ("nope.tar", r"^nope\.tar: .*no such file or folder \(\. contains here\)"),
        ("runs/nope", r"^runs/nope: .*no such file or folder \(there is no folder runs\)"),
    ],
)
def test_a_release_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    with pytest.raises(UserError, match=line):
        vqa_repro.load(name, device="cpu")


def test_a_download_that_was_cut_off_is_resumed(release: Path, cache: Path) -> None:
    content = release.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    cache.mkdir(parents=True)
    (cache / f"{checksum}.tar.part").write_bytes(content[:1000])
    with FaultServer({"release.tar": content}) as server:
        folder = local_run(f"{server.url()}release.tar#sha256={checksum}")
        assert "bytes=1000-" in [request.range for request in server.log]
    assert (folder / "recipe.json").is_file()
    assert {path.name for path in cache.iterdir()} == {checksum, f"{checksum}.tar"}


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [("", "#sha256="), ("#sha256=" + "0" * 64, "checksum"), ("#md5=0", "#sha256=")],
)
def test_an_address_without_the_right_checksum_is_refused(
    served: str, cache: Path, suffix: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        local_run(served + suffix)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("damage", ["cut", "changed", "not a tar", "another file", "a link", "out"])
def test_a_damaged_or_hostile_release_is_refused(
    release: Path, tmp_path: Path, cache: Path, damage: str
) -> None:
    hostile = tmp_path / "hostile.tar"
    content = release.read_bytes()
    if damage == "cut":
        hostile.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        at = content.index(b'"answers"')
        hostile.write_bytes(content[:at] + b'"Answers"' + content[at + 9 :])
    elif damage == "not a tar":
        hostile.write_bytes(b"<html>log in</html>")
    else:
        with tarfile.open(hostile, "w") as tar:
            member = tarfile.TarInfo(
                {"another file": "evil.py", "a link": "README.md"}.get(damage, "")
            )
            if damage == "a link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            if damage == "out":
                member.name = "../README.md"
            tar.addfile(member)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"hostile\.tar"):
        local_run(hostile)
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "cache"}
    assert not list(cache.iterdir())


def test_a_release_has_the_names_of_folders_alone(
    finished: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(finished, run)
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["data"]["name"] == str(drawn_folder)
    recipe["training"] |= {"teachers": ["/home/me/t-{fold}"], "init_from": "https://host/a/b.tar"}
    (run / "recipe.json").write_text(json.dumps(recipe))
    environment = json.loads((run / "environment.json").read_text())
    environment["without"] = ["3 images are damaged (see /home/me/my data/a.safetensors)"]
    environment["python"]["venv"] = "/home/me/.venv"
    (run / "environment.json").write_text(json.dumps(environment))
    assert main([str(run), "--out", str(out)]) == 0
    for file in set(out.iterdir()) - {out / "model.safetensors"}:
        text = file.read_text()
        assert str(drawn_folder.parent) not in text and "/home" not in text, file.name
    released = json.loads((out / "recipe.json").read_text())
    assert released["data"]["name"] == drawn_folder.name
    assert released["training"]["teachers"] == ["t-{fold}"]
    assert released["training"]["init_from"] == "https://host/a/b.tar"
    assert json.loads((out / "metrics.json").read_text())["data"] == drawn_folder.name
    assert "(see a.safetensors)" in (out / "environment.json").read_text()
    assert json.loads((run / "metrics.json").read_text())["data"] == str(drawn_folder)
    assert evaluate.main([str(out), "--data", str(drawn_folder), "--device", "cpu"]) == 0


def test_a_released_folder_does_not_become_a_published_data_set() -> None:
    data = Data(name="/home/me/daquar", features="/home/me/vgg19")
    assert published_data(data).name == "./daquar" and published_data(data).features == "./vgg19"
    same = Data(name="daquar", features="vgg19")
    assert published_data(same) == same


def test_the_card_leaves_the_licence_to_the_author(release: Path) -> None:
    with tarfile.open(release) as tar:
        file = tar.extractfile("README.md")
        assert file is not None and "license:" not in file.read().decode()


def test_an_unfinished_run_and_no_run_are_one_line(tmp_path: Path, cache: Path) -> None:
    done = run_verb("export", tmp_path, "--out", tmp_path / "out.tar", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.tar").exists()
