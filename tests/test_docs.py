"""The documentation: its commands work and its links are not dead.

Every line of a fenced block without a language is a command. All options, recipes and stages are
checked; the verbs in ``RUN`` are run in a folder that has the names used in the documents. Python
blocks are run, one document's in order; the four examples of extending.md are added to a copy of
the package, and the Slurm script is pre-empted. Git, checksums, tunnels and the five lines of VQA
use folders in place of a server and a network. For other programs (rsync, sftp, lftp, plink,
vncserver, Slurm's) only the shell syntax is checked.
"""

import ast
import csv
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from conftest import LIMIT, OPTIONS, PROJECT, environ

from vqa_repro.data.registry import find_data_set, load_split
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.install import checkpoints
from vqa_repro.models.network import build
from vqa_repro.recipe import load_recipe
from vqa_repro.run import Run
from vqa_repro.train import parse_change

DOCUMENTS = [*sorted(PROJECT.glob("README*.md")), *sorted((PROJECT / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
# The Chinese README has the commands of README.md; a test below checks that.
each_to_run = pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d.name != "README.zh-CN.md"], ids=lambda path: path.name
)

# Verbs that are run; the others' options are checked. Train is run on FOLDER, for one epoch.
RUN = ("evaluate", "predict", "report", "ssh")
# Programs of other projects that may start a line; only the syntax is checked.
OTHERS = re.compile(
    r"cd|curl|git|lftp|mkdir|plink|rsync|sbatch|scp|sftp|sha256sum|squeue|srun|ssh|"
    r"ssh-keygen|tail|tar|tensorboard|tmux|torchrun|vncserver"
)
# Placeholders in commands.
STANDS_FOR = re.compile(r"(\.\./)?[A-Z][A-Z_|]*|\$.*")


class Block(NamedTuple):
    document: Path
    line: int  # of its first line
    language: str
    text: str


@cache
def blocks(document: Path) -> list[Block]:
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines = document.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number + 1, line[3:].strip()
        else:
            text = "\n".join(lines[opened[0] - 1 : number - 1]) + "\n"
            found.append(Block(document, *opened, text))
            opened = None
    assert opened is None, f"{document}: a block without an end"
    return found


def shell_blocks(document: Path) -> list[Block]:
    """Return commands and scripts, without the blocks that show a directory layout."""
    return [
        block
        for block in blocks(document)
        if block.language in ("", "bash") and not re.match(r"\S+/\n", block.text)
    ]


def lines(text: str) -> list[str]:
    """Return the commands of a block: a trailing backslash continues, && separates."""
    joined = text.replace("\\\n", " ").replace(" && ", "\n")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def prose(document: Path) -> str:
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def in_sentences(document: Path) -> Iterator[str]:
    """Commands within the text."""
    for quoted in re.findall(r"`([^`]+)`", prose(document)):
        command = " ".join(quoted.split())
        if "…" not in command:
            yield command


def ours(document: Path, begin: str) -> Iterator[list[str]]:
    """Yield the words after ``begin`` of every command that starts with it, also after srun."""
    typed = [line for block in shell_blocks(document) for line in lines(block.text)]
    for command in [*typed, *in_sentences(document)]:
        command = re.sub(r"^srun (-\S+ )*(\.venv/bin/)?", "", command)
        if command.startswith(begin):
            words = shlex.split(command.removeprefix(begin), comments=True)
            yield [word for word in words if word != "&"]


def verbs(document: Path) -> Iterator[tuple[str, list[str]]]:
    for begin in ("python -m vqa_repro.", "vqa "):
        for words in ours(document, begin):
            if words and words[0] not in ("VERB", "list"):
                yield words[0], words[1:]


def value_of(option: str, words: list[str]) -> str | None:
    return words[words.index(option) + 1] if option in words else None


# ---------------------------------------------------------------- commands: do they exist?


@cache
def help_of(module: str) -> str:
    output = StringIO()
    main = importlib.import_module(module).main
    with redirect_stdout(output), pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    return output.getvalue()


def options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


def lacking(words: list[str], usage: str) -> set[str]:
    return {word for word in options(words) if not re.search(rf"(?<![\w-]){word}(?![\w-])", usage)}


@each_document
def test_shell_blocks_parse(document: Path) -> None:
    for block in shell_blocks(document):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert done.returncode == 0, f"{document}:{block.line}: {done.stderr}"
        if block.text.startswith("#!"):
            continue
        for line in lines(block.text):
            known = re.match(
                r"\./bootstrap\.sh|(\w+=\w+ )*python "
                r"(-m (vqa_repro\.|zipfile )|checkpoints_setup\.py|tests/faults/table\.py|"
                r"mobilenet_features\.py)",
                line,
            )
            assert known or OTHERS.fullmatch(line.split()[0]), f"{document}: unknown: {line}"


@each_document
def test_verbs_accept_their_options(document: Path) -> None:
    for verb, words in verbs(document):
        usage = help_of(f"vqa_repro.{verb}")
        assert lacking(words, usage) == set(), f"{document}: {verb} {shlex.join(words)}"


@each_document
def test_recipes_data_sets_and_options_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    # Recipes that a document writes are tried with its examples.
    written = set(re.findall(r"^# vqa_repro/recipes/(.*)\.toml$", text, flags=re.M))
    for verb, words in verbs(document):
        data = value_of("--data", words)
        if data and not STANDS_FOR.fullmatch(data):
            find_data_set(data)
        name = value_of("--recipe", words) or "easy-vqa"
        if verb == "train" and name not in written and not STANDS_FOR.fullmatch(name):
            given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
            try_recipe(name, dict(parse_change(each) for each in given if "KEY" not in each))
    for names in re.findall(r"^recipes=\(([^)]*)\)", text, flags=re.M):
        for name in names.split():
            try_recipe(name, {})


def try_recipe(name: str, changes: dict[str, object]) -> None:
    """Raise UserError for a recipe or option that does not exist."""
    recipe = load_recipe(name, changes)
    vocabulary = Vocabulary(("<pad>", "<unk>", "what"), ("yes", "no"))
    with torch.device("meta"):
        build(Run(Path("unused"), recipe, vocabulary, {"channels": 512, "scale": 1.0}))


@each_document
def test_bootstrap_accepts_its_options(document: Path) -> None:
    usage = bootstrap("--help").stdout
    for words in ours(document, "./bootstrap.sh"):
        words = words if words[:1] != ["test"] else ["test"]  # the rest goes to pytest
        assert lacking(words, usage) == set(), f"{document}: {shlex.join(words)}"
        if words and not words[0].startswith("-"):
            assert re.search(rf"^  {words[0]}\b", usage, re.M), f"{document}: {words[0]}"
        if not any(STANDS_FOR.fullmatch(word) for word in words):
            done = bootstrap(*words)
            assert done.returncode == 0, f"{document}: {shlex.join(words)}: {done.stderr}"


@cache
def bootstrap(*words: str) -> subprocess.CompletedProcess[str]:
    """Return the dry run of ./bootstrap.sh."""
    return subprocess.run(
        ["bash", "bootstrap.sh", *words],
        cwd=PROJECT,
        env={**os.environ, "VQA_DRY_RUN": "1", "VQA_OFFLINE": "1", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@each_document
def test_checkpoints_setup_accepts_its_options(document: Path) -> None:
    usage = help_of("checkpoints_setup")
    for words in ours(document, "python checkpoints_setup.py"):
        assert lacking(words, usage) == set(), f"{document}: {shlex.join(words)}"
        if words and not words[0].startswith("-"):
            checkpoints.lookup(words[0])


# ---------------------------------------------------------------- commands and Python: run


@pytest.fixture
def workspace(
    tmp_path: Path,
    drawn_folder: Path,
    finished: Path,
    finished_hiecoatt: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Change to a folder with the names used in the documents: IMAGE, FOLDER, runs, resources."""
    place = tmp_path / "workspace"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "FOLDER").symlink_to(drawn_folder)
    for name in ("IMAGE", "image.png"):
        shutil.copy(drawn_folder / "images" / "1.png", place / name)
    (place / "runs").mkdir()
    (place / "runs" / "easy-vqa").symlink_to(finished)
    (place / "runs" / "hiecoatt").symlink_to(finished_hiecoatt)
    (place / "RUN").symlink_to(finished)
    small_vqa_v2(drawn_folder, place / "resources" / "vqa")
    return place


def small_vqa_v2(folder: Path, vqa: Path) -> None:
    """Write the published files of VQA v2 train and val with few questions."""
    vqa.mkdir(parents=True)
    for split in ("train", "val"):
        questions = json.loads((folder / f"{split}_questions.json").read_text())
        (vqa / f"v2_OpenEnded_mscoco_{split}2014_questions.json").write_text(json.dumps(questions))
        annotations = json.loads((folder / f"{split}_annotations.json").read_text())
        for annotation in annotations["annotations"]:
            annotation["answers"] *= 10
            annotation["multiple_choice_answer"] = annotation["answers"][0]["answer"]
        path = vqa / f"v2_mscoco_{split}2014_annotations.json"
        path.write_text(json.dumps(annotations))


def can_be_run(verb: str, words: list[str]) -> bool:
    if verb == "train":
        return value_of("--data", words) == "FOLDER"
    return verb in RUN and value_of("--data", words) in (None, "FOLDER")


@pytest.mark.slow
@each_to_run
def test_commands_run(document: Path, workspace: Path) -> None:
    if document.name == "extending.md":
        pytest.skip("they need its examples, with which they are run below")
    for block in shell_blocks(document):
        for verb, words in verbs_of(block):
            if not can_be_run(verb, words):
                continue
            epochs = ["--epochs", "1"] if verb == "train" else []
            words = [name for word in words for name in expanded(word)]
            code = importlib.import_module(f"vqa_repro.{verb}").main([*words, *epochs])
            assert code == 0, f"{document}:{block.line}: {verb} {shlex.join(words)}"


def verbs_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Yield the verbs that a person types, not those in scripts."""
    for line in lines(block.text) if not block.text.startswith("#!") else []:
        if line.startswith("python -m vqa_repro."):
            verb, *words = shlex.split(line.removeprefix("python -m vqa_repro."), comments=True)
            yield verb, [word for word in words if word != "&"]


def expanded(word: str) -> list[str]:
    """Expand wildcards as a shell does."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


@pytest.mark.slow
@each_to_run
def test_python_runs(document: Path, workspace: Path) -> None:
    names: dict[str, object] = {"__name__": "document"}
    for block in blocks(document):
        if block.language == "python" and not block.text.startswith("# "):
            padded = "\n" * (block.line - 1) + block.text  # so that errors name the line
            exec(compile(padded, str(document), "exec"), names)


@pytest.mark.slow
def test_a_run_without_its_checkpoints_answers(
    finished: Path, tmp_path: Path, drawn_folder: Path
) -> None:
    """Four files are enough, as moving.md says."""
    import vqa_repro

    moving = (PROJECT / "docs" / "moving.md").read_text(encoding="utf-8")
    enough = ["recipe.json", "vocabulary.json", "features.json", "model.safetensors"]
    assert "`recipe.json`, `vocabulary.json`,\n`features.json` and `model.safetensors`" in moving
    for name in enough:
        shutil.copy(finished / name, tmp_path)
    picture = drawn_folder / "images" / "1.png"
    here, there = (
        vqa_repro.load(run).predict(picture, "is it red?") for run in (finished, tmp_path)
    )
    assert here.answers == there.answers


# ---------------------------------------------------------------- extending.md and slurm.md


@pytest.mark.slow
def test_the_examples_of_extending_work_as_they_stand(drawn_folder: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "vqa_repro", tmp_path / "vqa_repro", ignore=ignored)
    shutil.copy(PROJECT / "checkpoints_setup.py", tmp_path)
    (tmp_path / "tests" / "models").mkdir(parents=True)
    document = PROJECT / "docs" / "extending.md"
    for block in blocks(document):
        if block.language == "diff":
            apply = ["git", "apply", "-"]
            done = subprocess.run(apply, cwd=tmp_path, input=block.text, text=True)
            assert done.returncode == 0, f"{document}:{block.line}: does not apply"
        elif block.text.startswith("# "):
            (tmp_path / block.text.splitlines()[0].removeprefix("# ")).write_text(block.text)
    mine_from(drawn_folder, tmp_path / "resources")
    shutil.copy(drawn_folder / "images" / "1.png", tmp_path / "IMAGE")
    torch.save(torchvision.models.mobilenet_v3_large().state_dict(), tmp_path / "WEIGHTS")

    env = {**environ(), "PYTHONPATH": str(tmp_path)}
    commands = [["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]]
    for block in shell_blocks(document):
        for line in lines(block.text):
            _, *words = shlex.split(line)
            epochs = ["--epochs", "2"] if words[1] == "vqa_repro.train" else []
            commands.append([*words, *epochs])
    assert len(commands) == 6
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert (tmp_path / "look.png").is_file()


def mine_from(folder: Path, root: Path) -> None:
    """Write the drawn questions in the format of extending.md's data set."""
    shutil.copytree(folder / "images", root / "images")
    for split, name in (("train", "mine_train.csv"), ("val", "mine_test.csv")):
        questions = json.loads((folder / f"{split}_questions.json").read_text())["questions"]
        annotations = json.loads((folder / f"{split}_annotations.json").read_text())
        with (root / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "question", "answer"])
            for question, annotation in zip(questions, annotations["annotations"], strict=True):
                answer = annotation["answers"][0]["answer"]
                writer.writerow([f"{question['image_id']}.png", question["question"], answer])


@pytest.mark.slow
def test_the_slurm_script_is_requeued_and_resumes(drawn_folder: Path, tmp_path: Path) -> None:
    document = PROJECT / "docs" / "slurm.md"
    script = next(b.text for b in shell_blocks(document) if "scontrol requeue" in b.text)
    small = shlex.join(["--data", str(drawn_folder), *OPTIONS, "--epochs", "20"])
    assert "--recipe san-2-lstm-vqa-v2" in script
    (tmp_path / "job").write_text(script.replace("--recipe san-2-lstm-vqa-v2", small))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    for name, text in {
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
        # Slurm sends signals to the process of the step.
        "srun": '[[ $1 == --ntasks=1 ]] || exit 9; shift; echo $$ >step; exec "$@"',
        "scontrol": 'echo "$@" >>requeued',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "1"}

    def job(until: signal.Signals | None) -> int:
        """Run the script, send its step a signal once it trains, return its exit code."""
        env = {**environ(), **slurm}
        with (tmp_path / "job.log").open("a") as log:
            process = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=env, stdout=log)
        if until is not None:
            before = job_log(tmp_path).count("  epoch ")
            while job_log(tmp_path).count("  epoch ") == before and process.poll() is None:
                time.sleep(0.05)
            os.kill(int((tmp_path / "step").read_text()), until)
        return process.wait(timeout=LIMIT)

    assert job(signal.SIGUSR1) == 138
    assert (tmp_path / "requeued").read_text() == "requeue 1234\n"
    assert job(signal.SIGTERM) == 143
    assert job(None) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 1234\n", "a cancelled job came back"
    run = tmp_path / "runs" / "san-2-lstm-vqa-v2-1"
    assert (run / "metrics.json").is_file()
    assert json.loads((run / "recipe.json").read_text())["training"]["seed"] == 1
    assert job_log(tmp_path).count("resumed after step") == 2
    assert re.search(r"[\r\x1b]", job_log(tmp_path)) is None


def job_log(folder: Path) -> str:
    return (folder / "job.log").read_text()


# ---------------------------------------------------------------- other programs' commands


def section(document: str, heading: str) -> list[list[str]]:
    """Return the commands of each block below ``heading``."""
    path = PROJECT / document
    below = 0  # the heading's line
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("## "):
            below = number if line == heading else 0
        found += [lines(b.text) for b in blocks(path) if below and b[1:3] == (number + 1, "")]
    assert found, f"{document}: nothing below {heading!r}"
    return found


def stub(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_git_commands_of_moving_transfer_the_code(tmp_path: Path) -> None:
    campus, laptop, server = (tmp_path / name for name in ("campus", "laptop", "server"))
    programs = tmp_path / "programs"
    stub(programs, "ssh", f'shift; cd {shlex.quote(str(server))} && eval "$*"')
    stub(programs, "scp", f'cp "$1" {shlex.quote(str(server))}')
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "GIT_TERMINAL_PROMPT": "0"}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "Ada", f"GIT_{who}_EMAIL": "ada@example.edu"}

    def run(command: str, cwd: Path) -> str:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    run(f"git init -q -b main --bare {shlex.quote(str(campus / 'GROUP/vqa_repro.git'))}", tmp_path)
    for url in ("git@gitlab.example.edu:", "https://gitlab.example.edu/"):
        run(f"git config --global --add {shlex.quote(f'url.{campus}/.insteadOf')} {url}", tmp_path)
    run(f"git init -q -b main {shlex.quote(str(laptop))}", tmp_path)
    run("git commit -q --allow-empty -m one", laptop)
    arrived = []
    for block in section("docs/moving.md", "## Code: git"):
        shutil.rmtree(server, ignore_errors=True)
        server.mkdir()
        for line in block:
            if line.startswith("ssh-keygen"):  # would prompt for a path
                line += f" -q -N '' -f {shlex.quote(str(tmp_path / 'key'))}"
            if line == "ssh -T git@gitlab.example.edu":
                continue
            run(line, server if line.startswith("git clone") else laptop)
        if (server / "vqa_repro").exists():
            arrived.append(run("git rev-parse HEAD", server / "vqa_repro"))
    assert arrived == [run("git rev-parse HEAD", laptop)] * 2, "by the remote, and by one file"
    assert run("git remote get-url --all campus", laptop).endswith("/GROUP/vqa_repro.git")


def test_the_checksum_commands_of_moving_work(tmp_path: Path) -> None:
    texts = [" && ".join(block) for block in section("docs/moving.md", "## Files: which program")]
    make, compare = (text for text in texts if "sha256sum" in text)
    folder = tmp_path / "vqa_repro" / "resources" / "features"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(bytes(1000))
    subprocess.run(["bash", "-ec", make], cwd=tmp_path / "vqa_repro", check=True)
    here = {"cwd": tmp_path, "capture_output": True, "text": True}
    assert subprocess.run(["bash", "-ec", compare], **here).stdout == "a.safetensors: OK\n"
    (folder / "a.safetensors").write_bytes(bytes(999))
    assert subprocess.run(["bash", "-ec", compare], **here).returncode == 1


def test_the_published_checksums_name_known_files_and_are_checked(tmp_path: Path) -> None:
    sums = (PROJECT / "docs" / "SHA256SUMS").read_text()
    named = re.findall(r"^[0-9a-f]{64}  (\S+)$", sums, flags=re.M)
    assert len(named) == len(set(named)) == sums.count("\n") > 10
    text = (PROJECT / "docs" / "data.md").read_text(encoding="utf-8")
    for name in named:
        family = re.sub("(v2_)?(Questions|Annotations)_.*", "mscoco.zip", name)
        assert family in text, name
    (line,) = (line for block in section("docs/data.md", "## How to check") for line in block
               if line.startswith("sha256sum"))  # fmt: skip
    (tmp_path / named[0]).write_bytes(b"another")
    command = shlex.split(line.replace("PROJECT", shlex.quote(str(PROJECT))))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == f"{named[0]}: FAILED\n"


def test_ssh_accepts_the_tunnels() -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh here")
    tunnels = {
        line for d in DOCUMENTS for b in shell_blocks(d) for line in lines(b.text)
        if line.startswith("ssh -N ")
    }  # fmt: skip
    assert len(tunnels) >= 3
    for line in tunnels:
        words = shlex.split(line)[1:]
        done = subprocess.run(["ssh", "-G", "-F", "none", *words], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        port = re.search(r"-L (\d+):", line)
        assert port and f"localforward {port[1]} [127.0.0.1]:{port[1]}" in done.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in its own code
def test_tensorboard_accepts_its_options() -> None:
    from tensorboard.program import TensorBoard

    shown = [
        line for d in DOCUMENTS for b in shell_blocks(d) for line in lines(b.text)
        if line.startswith("tensorboard ")
    ]  # fmt: skip
    assert shown
    for line in shown:
        board = TensorBoard()
        board.configure(shlex.split(line))
        assert board.flags.host == "127.0.0.1" and board.flags.logdir == "runs"


CURL = """
import shutil, sys, zipfile
from pathlib import Path
assert sys.argv[1:5] == ["-L", "-C", "-", "--remote-name-all"], sys.argv
for url in sys.argv[5:]:
    shutil.copy(Path(NETWORK) / url.partition("://")[2].replace("/", "_"), url.rpartition("/")[2])
"""


def test_the_five_lines_of_the_readme_download_vqa(drawn_folder: Path, tmp_path: Path) -> None:
    network, programs, unpacked = (tmp_path / name for name in ("network", "bin", "unpacked"))
    network.mkdir()
    small_vqa_v2(drawn_folder, unpacked)
    for split in ("train", "val"):
        for kind in ("questions", "annotations"):
            (file,) = unpacked.glob(f"v2_*_{split}2014_{kind}.json")
            name = f"v2_{kind.title()}_{split.title()}_mscoco.zip"
            with zipfile.ZipFile(
                network / f"cvmlp.s3.amazonaws.com_vqa_mscoco_vqa_{name}", "w"
            ) as z:
                z.write(file, file.name)
        asked = json.loads((drawn_folder / f"{split}_questions.json").read_text())["questions"]
        pictures = f"images.cocodataset.org_zips_{split}2014.zip"
        with zipfile.ZipFile(network / pictures, "w") as z:
            for image in {question["image_id"] for question in asked}:
                name = f"{split}2014/COCO_{split}2014_{image:012}.jpg"
                z.write(drawn_folder / "images" / f"{image}.png", name)
    stub(programs, "python", f'exec {shlex.quote(sys.executable)} "$@"')
    (tmp_path / "curl.py").write_text(f"NETWORK = {str(network)!r}\n{CURL}")
    stub(programs, "curl", f'exec python {shlex.quote(str(tmp_path / "curl.py"))} "$@"')
    (block,) = section("README.md", "## VQA v2 and v1, in five lines")
    fetch = [line for line in block if not line.startswith(("python checkpoints", "python -m vqa"))]
    assert len(block) == len(fetch) + 2
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", "\n".join(fetch)], cwd=tmp_path, env=env, check=True)
    recipe = load_recipe("san-2-lstm-vqa-v2", {})
    for split in (recipe.data.train, recipe.data.test):
        found = load_split(recipe.data.name, tmp_path / "resources", split)
        assert found.examples and all(path.is_file() for path in found.images.values())


def test_the_ssh_configuration_is_one(tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh here")
    configurations = [b for d in DOCUMENTS for b in blocks(d) if b.language == "ssh-config"]
    assert configurations
    for number, block in enumerate(configurations):
        path = tmp_path / f"config{number}"
        path.write_text(block.text)
        host = block.text.split()[1]
        done = subprocess.run(["ssh", "-G", "-F", path, host], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "localforward 8888 [127.0.0.1]:8888" in done.stdout


# ---------------------------------------------------------------- links and quotations


def anchors(document: Path) -> set[str]:
    """Return the anchors of headings as GitHub and GitLab make them."""
    headings = re.findall(r"^#+ +(.*)$", prose(document), flags=re.M)
    names = set()
    for heading in headings:
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower().replace("`", "")
        names.add(re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-"))
    return names


@each_document
def test_links_are_not_dead(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?:", target):
            continue
        path, _, heading = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), f"{document}: {target}"
        assert PROJECT in (there, *there.parents), f"{document}: {target} is outside"
        assert not heading or heading in anchors(there), f"{document}: {target}"


def sources() -> Iterator[str]:
    """Yield every text that the project may print, with NUL in place of inserted values."""
    paths = [*(PROJECT / "vqa_repro").rglob("*.py"), PROJECT / "checkpoints_setup.py"]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for path in (PROJECT / "bootstrap.sh", PROJECT / "vqa_repro" / "install" / "get_python.sh"):
        yield path.read_text(encoding="utf-8")


def test_explained_messages_exist_in_the_sources() -> None:
    text = (PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = text.partition("## Messages of other programs")[0]
    messages = re.findall(r"\*\*`([^`]+)`\*\*", explained)
    assert len(messages) > 50
    come = list(sources())
    patterns = {}
    for message in messages:
        parts = [part.strip() for part in " ".join(message.split()).split("…")]
        patterns[message] = re.compile(".*".join(map(re.escape, parts)))
    lost = [m for m, pattern in patterns.items() if not any(map(pattern.search, come))]
    assert lost == [], "no source contains these"


def test_the_chinese_readme_has_the_same_commands_and_numbers() -> None:
    english, chinese = PROJECT / "README.md", PROJECT / "README.zh-CN.md"

    def commands(document: Path) -> list[list[str]]:
        return [
            [re.sub(r"\s+# .*", "", line) for line in b.text.splitlines()] for b in blocks(document)
        ]

    def numbers(text: str) -> list[str]:
        return sorted(re.findall(r"\d+(?:[.,]\d+)*", text))

    def tables(document: Path) -> list[list[str]]:
        rows = re.findall(r"^\|.*$", prose(document), flags=re.M)
        return [numbers(row) for row in rows]

    assert commands(english) == commands(chinese)
    assert tables(english) == tables(chinese)
    assert numbers(prose(english)) == numbers(prose(chinese))
    headings = [re.findall(r"^#+ ", prose(document), flags=re.M) for document in (english, chinese)]
    assert headings[0] == headings[1]


def test_the_search_of_the_site_takes_every_chinese_character_as_a_word() -> None:
    config = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8")
    found = re.search(r"separator: '(.*)'", config)
    assert found and "lang: [en, zh]" in config
    assert [word for word in re.split(found[1], "co-attention 注意力") if word] == [
        *("co", "attention"),
        *("注", "意", "力"),
    ]


def test_the_checks_have_input() -> None:
    """A changed layout must not leave the checks above without input."""
    languages = [block.language for document in DOCUMENTS for block in blocks(document)]
    assert {"", "bash", "diff", "python", "ssh-config", "toml"} <= set(languages)
    commands = [verb for document in DOCUMENTS for verb, _ in verbs(document)]
    assert {"train", "evaluate", "predict", "extract", "report", "serve"} <= set(commands)
