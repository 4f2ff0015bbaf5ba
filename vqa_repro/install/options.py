"""The arguments and variables of ./bootstrap.sh; usage.txt explains them."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vqa_repro.install.torch_builds import CHOICES
from vqa_repro.utils.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
STATE = PROJECT / ".bootstrap"  # the installer, the logs and the lock
STAGES = ("check", "env", "checkpoint", "doctor", "train")
VERBS = (*STAGES, "test", "jupyter", "bundle")
VERSION = re.compile(r"3\.[0-9]{1,2}")
PYTHON_KINDS = ("managed", "system")  # by uv; of this machine
# Options with a value, and the variable that stands for each.
VALUES = {
    "--bundle": "VQA_BUNDLE",
    "--python": "VQA_PYTHON",
    "--python-mirror": "UV_PYTHON_INSTALL_MIRROR",
    "--torch": "VQA_TORCH",
    "--torch-index": "VQA_TORCH_INDEX",
    "--venv": "VQA_VENV",
    "--installer": "VQA_INSTALLER",
    "--lock-wait": "VQA_LOCK_WAIT",
    "--skip": "VQA_SKIP",
    "--split": "",
}
FLAGS = {"--dry-run": "VQA_DRY_RUN", "--offline": "VQA_OFFLINE", "--with-python": ""}
# Options that the printed commands repeat.
REPEATED = (
    *("--bundle", "--python", "--python-mirror", "--torch", "--torch-index", "--venv"),
    "--installer",
)


@dataclass(frozen=True)
class Options:
    """What the user wants. Paths are absolute; "" and None mean that nothing was named."""

    verb: str
    stop: bool  # jupyter stop
    rest: list[str]  # for train, test or jupyter
    skip: frozenset[str]
    dry_run: bool
    offline: bool
    python: str  # a path, 3.X, or one of PYTHON_KINDS
    python_mirror: str
    venv: Path
    installer: str
    lock_wait: int
    torch: str  # "auto" chooses again for an environment that has a build
    torch_index: str
    bundle: Path | None
    out: Path
    split: str
    bundle_python: bool
    typed: tuple[str, ...]  # the options that a follow-up command repeats
    target: str = ""  # the 3.X that a bundle is made for

    def command(self, *words: str, without: str = "") -> str:
        """Return the ./bootstrap.sh command with these words and the options that were typed."""
        repeated = [word for word in self.typed if not (without and word.startswith(without))]
        return shlex.join([program(), *words, *repeated])

    def again(self, *words: str) -> str:
        """Return the command that was typed: its stage, its options, and what it hands on."""
        verb = [] if self.verb in ("all", "check") else [self.verb]
        verb += [str(self.out)] if self.verb == "bundle" else []
        rest = shlex.join(["--", *self.rest]) if self.rest and self.verb != "test" else ""
        return f"{self.command(*verb, *words)} {rest}".strip()


def program() -> str:
    """Return how ./bootstrap.sh is called from the current folder."""
    try:
        if os.path.samefile(os.getcwd(), PROJECT):
            return "./bootstrap.sh"
    except OSError:  # the current folder was removed
        pass
    return str(PROJECT / "bootstrap.sh")


def _bundle_folder(words: list[str]) -> str:
    """Take the folder that follows "bundle" off ``words``."""
    out = words.pop(0) if words else ""
    if not out or out.startswith("-"):
        raise UserError(f"bundle needs a folder to make: {program()} bundle OUT")
    return out


def parse(arguments: list[str], environ: Mapping[str, str]) -> Options:
    """Return the options. Raise UserError for arguments or variables that make no sense."""
    values = {option: environ.get(name, "") for option, name in VALUES.items() if name}
    values |= {flag: environ.get(name) or "0" for flag, name in FLAGS.items()}
    verb, stop, out, rest = "all", False, "", []
    words, typed = list(arguments), dict[str, str]()
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if word == "--":
            rest = words
            break
        if option in VALUES:
            if not equals and words:
                value = words.pop(0)
            if not value:
                raise UserError(f"{option} needs a value")
            value = f"{values['--skip']} {value}" if option == "--skip" else value
            values[option] = typed[option] = value
        elif word in FLAGS:
            values[word], typed[word] = "1", ""
        elif word == "stop":
            if verb != "jupyter":
                raise UserError(f"'stop' is for jupyter: {program()} jupyter stop")
            stop = True
        elif word in VERBS:
            if verb != "all":
                raise UserError(f"one stage at a time: '{verb}' or '{word}'")
            verb = word
            if verb == "test":
                rest = words
                break
            if verb == "bundle":
                out = _bundle_folder(words)
        else:
            raise UserError(f"unknown argument '{word}' (those of train and jupyter go after --)")
    if rest and verb not in ("all", "train", "test", "jupyter"):
        raise UserError(f"stage {verb} takes no arguments after --")
    check(values, verb)
    options = Options(
        verb=verb,
        stop=stop,
        rest=rest,
        skip=frozenset(values["--skip"].split()),
        dry_run=values["--dry-run"] == "1",
        offline=values["--offline"] == "1",
        python=values["--python"],
        python_mirror=values["--python-mirror"],
        venv=absolute(values["--venv"] or str(PROJECT / ".venv")),
        installer=values["--installer"] or "auto",
        lock_wait=int(values["--lock-wait"] or 1800),
        torch=values["--torch"],
        torch_index=values["--torch-index"],
        bundle=absolute(values["--bundle"]) if values["--bundle"] else None,
        out=absolute(out),
        split=values.get("--split", ""),
        bundle_python=values["--with-python"] == "1",
        typed=repeated(typed),
    )
    return with_bundle(with_python(options))


def check(values: Mapping[str, str], verb: str) -> None:
    for stage in values["--skip"].split():
        if stage not in STAGES:
            raise UserError(f"--skip: no stage '{stage}'")
    if not {values["--dry-run"], values["--offline"]} <= {"0", "1"}:
        raise UserError("VQA_DRY_RUN and VQA_OFFLINE are 0 or 1")
    if values["--installer"] not in ("", "auto", "uv", "pip"):
        raise UserError(f"no installer '{values['--installer']}'; uv, pip or auto")
    if values["--lock-wait"] and not re.fullmatch("[0-9]{1,9}", values["--lock-wait"]):
        raise UserError(f"--lock-wait is in seconds, not '{values['--lock-wait']}'")
    if values["--torch"] not in ("", "auto", *CHOICES):
        raise UserError(f"no torch '{values['--torch']}'; auto, {', '.join(CHOICES)}")
    if values["--venv"] and not absolute(values["--venv"]).name:
        raise UserError(f"--venv: {values['--venv']} cannot be an environment; name a folder in it")
    if verb == "bundle" and values["--bundle"]:
        raise UserError("--bundle installs from a bundle, bundle OUT makes one")
    if verb != "bundle" and values.get("--split"):
        raise UserError("--split needs bundle OUT")
    if verb != "bundle" and values["--with-python"] == "1":
        raise UserError("--with-python needs bundle OUT")


def repeated(typed: Mapping[str, str]) -> tuple[str, ...]:
    words = [f"{name}={typed[name]}" for name in REPEATED if name in typed]
    return (*words, *(["--offline"] if "--offline" in typed else []))


def with_python(options: Options) -> Options:
    """Find the Python that was named; one that a bundle is for need not be here."""
    if options.verb == "bundle" and VERSION.fullmatch(options.python):
        return dataclasses.replace(options, python="", target=options.python)
    if options.python in ("", *PYTHON_KINDS) or VERSION.fullmatch(options.python):
        return options
    path = shutil.which(os.path.expanduser(options.python))
    if path is None:
        raise UserError(f"--python: there is no program {options.python}")
    return dataclasses.replace(options, python=os.path.abspath(path))


def with_bundle(options: Options) -> Options:
    """Without a network, and of the Python that the bundle names."""
    if options.bundle is None:
        return options
    if not options.bundle.is_dir():
        raise UserError(f"--bundle: there is no folder {options.bundle}")
    python = options.python or named_by_bundle(options.bundle, "python")
    return dataclasses.replace(options, offline=True, python=python)


def named_by_bundle(bundle: Path | None, key: str) -> str:
    """Return what bundle.json names, before it is verified; "" where it names nothing."""
    try:
        with open((bundle or Path("/nowhere")) / "bundle.json", "rb") as file:
            text = file.read(9999).decode("utf-8", "replace")
    except OSError:
        return ""
    found = re.search(rf'(?m)^ "{key}": "(3\.1[0-5]|cu130|cu128|cu126|cpu)",$', text)
    return found[1] if found else ""


def absolute(path: str) -> Path:
    """Return the path from the root, with ~ resolved as a shell does it."""
    return Path(os.path.abspath(os.path.expanduser(path)))
