"""The command line of checkpoints_setup.py.

    python checkpoints_setup.py                          # vgg19
    python checkpoints_setup.py vgg16 resnet152-v2       # by name, or by full file name
    python checkpoints_setup.py vgg19 --from /media/usb  # a file, a folder or a URL; any file name
    python checkpoints_setup.py --list

Needs nothing but Python, and runs before torch is installed. Existing files are hashed, not
trusted; downloads resume where they were cut off; a file gets its name only once its SHA-256 is
right.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from vqa_repro.install import checkpoints
from vqa_repro.install.checkpoints import Checkpoint, lookup
from vqa_repro.install.download import part_of, size_of
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.http_client import check_url, join_url
from vqa_repro.install.progress import mib, say
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import NOT_REGULAR, WriteError

MAX_SECONDS = 1e6  # sockets take no more than 2**31 milliseconds
EXIT_CODES = """exit codes:
  0    all present and verified
  2    bad arguments, or standard output cannot be written
  3    no source had it (no network, no file); nothing bad is left
  4    verification failed: every source gave wrong bytes, or --verify found a bad file
  5    another process held the lock for longer than --lock-wait
  6    the disk is full, or a file or folder cannot be read or written
  130  Ctrl-C, 143 SIGTERM, 129 hang-up: what was downloaded is kept, the same command continues

More mirrors can be named in VQA_CHECKPOINT_MIRRORS (base URLs, separated by spaces). Proxies and
certificates: http_proxy, https_proxy, no_proxy, SSL_CERT_FILE."""


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_SECONDS:
        raise ValueError
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="checkpoints_setup.py",
        description="Put pretrained checkpoints where torch.hub looks for them, verified.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="vgg19 (default), ... (see --list), or file names")
    add(
        "--from",
        dest="source",
        metavar="FILE|DIR|URL",
        help="only from there (folder URLs end in /)",
    )
    add("--mirror", action="append", default=[], metavar="URL", help="base URL to try first")
    add("--dir", type=Path, metavar="DIR", help="put them here instead of where torch.hub looks")
    add("--list", action="store_true", help="list the known checkpoints and their state")
    add("--verify", action="store_true", help="only hash existing files, all of them again")
    add("--offline", action="store_true", help="use no network")
    add("--json", action="store_true", help="print the outcome as JSON on standard output")
    add("--timeout", type=seconds, default=30, metavar="S", help="stall limit (default 30 s)")
    add("--lock-wait", type=seconds, default=600, metavar="S", help="default 600 s")
    args = parser.parse_args(arguments)
    if (args.list or args.verify) and (args.source or args.mirror or args.list == args.verify):
        parser.error("--list and --verify go with no source, and not together")
    if args.offline and (args.mirror or "://" in (args.source or "")):
        parser.error("--offline does not go with a URL")
    return args


def sources_of(args: argparse.Namespace, checkpoint: Checkpoint) -> list[Path | str]:
    """Return where to look, in order."""
    bases: list[str] = [*args.mirror]
    sources: list[Path | str] = []
    if args.source is None:
        bases += [*os.environ.get("VQA_CHECKPOINT_MIRRORS", "").split(), checkpoint.origin]
    elif "://" in args.source and not args.source.endswith("/"):
        sources.append(check_url(args.source))
    elif "://" in args.source:
        bases.insert(0, args.source)
    else:
        sources.append(file_or_folder(args.source))
    if not args.offline:
        sources += [join_url(check_url(base), checkpoint.filename) for base in bases]
    return sources


def file_or_folder(source: str) -> Path:
    """Return the path of ``--from``. Raise InstallError if it leads to neither."""
    path = expand(source, "--from")
    what = "no such file or folder"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            what = error.strerror or str(error)
    else:
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return path
        what = NOT_REGULAR
    raise InstallError(ExitCode.BAD_INPUT, f"--from {source}: {what}")


def expand(path: str | Path, option: str) -> Path:
    """Return the path with ~ expanded. Raise InstallError for no such user, or no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        what = f"{option} {path}: cannot expand ~; write the path in full"
        raise InstallError(ExitCode.BAD_INPUT, what) from None


def folder_of(args: argparse.Namespace) -> Path:
    if args.dir:
        return expand(args.dir, "--dir")
    try:
        checkpoints.require_absolute_dir()
    except InstallError as error:
        next_ = f"{error.next}, or use --dir DIR"
        raise InstallError(error.code, error.what, next=next_) from None
    return checkpoints.checkpoint_dir()


def run(args: argparse.Namespace, outcomes: list[dict[str, str]]) -> int:
    """Run the command; add to ``outcomes`` what became of each checkpoint. Return the exit code."""
    directory = folder_of(args)
    if args.list:
        for checkpoint in checkpoints.KNOWN:
            try:
                state = checkpoints.state_of(checkpoint, directory)
            except OSError as error:
                raise InstallError(*explain(error, directory)) from None
            outcomes.append({"name": checkpoint.name, "file": checkpoint.filename, "state": state})
        return ExitCode.OK
    chosen = dict.fromkeys(lookup(name) for name in args.names or ["vgg19"])
    plan = [(each, [] if args.verify else sources_of(args, each)) for each in chosen]
    code = 0
    for checkpoint, sources in plan:
        target = directory / checkpoint.filename
        outcome = {"name": checkpoint.name, "file": checkpoint.filename, "path": str(target)}
        outcomes.append(outcome)
        try:
            if args.verify:
                result = checkpoints.verify(checkpoint, directory)
            else:
                result = checkpoints.ensure(
                    checkpoint, directory, sources, args.lock_wait, args.timeout
                )
            outcome.update(result, state="verified")
        except (InstallError, WriteError, OSError) as error:
            failure, text = explain(error, directory)
            code = code or failure
            outcome.update(state="failed", error=text)
            say(f"error: {text}")
        except (KeyboardInterrupt, SystemExit):
            present = size_of(part_of(target))
            kept = f"{mib(present)} kept in {part_of(target)}"
            say(
                f"stopped; {kept if present else 'nothing partial is left'}; run it again to resume"
            )
            raise
    return code


def explain(error: InstallError | WriteError | OSError, directory: Path) -> tuple[int, str]:
    """Return the exit code and the line for a failure."""
    if isinstance(error, InstallError):
        return error.code, str(error)
    if isinstance(error, OSError):
        text = f"{error.filename or directory}: {error.strerror}"
    else:
        text = str(error)
    fix = "fix that, or choose another folder with --dir or TORCH_HOME"
    return ExitCode.CHECKPOINT_DISK, f"{text}; {fix}"


def main(arguments: list[str] | None = None) -> int:
    """Run checkpoints_setup.py with these arguments; return its exit code."""
    args = parse(arguments)
    outcomes: list[dict[str, str]] = []
    report: dict[str, Any] = {"checkpoints": outcomes}
    try:
        code = run(args, outcomes)
    except UserError as error:
        say(f"error: {error}")
        code, report["error"] = getattr(error, "code", ExitCode.BAD_INPUT), str(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    if args.json:
        print(json.dumps({"exit_code": code, **report}, indent=2))
    else:
        for outcome in outcomes:
            if args.list:
                print("{name:13} {file:23} {state}".format(**outcome))
            elif outcome["state"] == "verified":
                print("{name}: verified, {how}: {path}".format(**outcome))
    return code
