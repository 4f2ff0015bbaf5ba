"""All that an installation needs, in one folder, for a machine without a network.

    ./bootstrap.sh bundle OUT            # on a machine with a network
    ./bootstrap.sh --bundle DIR          # on the one without
    python3 -m vqa_repro.install.bundle verify DIR

Needs nothing but Python, as bootstrap.sh runs it before there is an environment. A bundle holds

    MANIFEST.sha256      sha256sum -c MANIFEST.sha256
    bundle.json          for which Python, platform, torch and locks; the size of every file
    README.txt           what to type
    code.tar.gz          this project
    *.lock, wheels/      the packages, and uv, which installs them
    checkpoints/         as far as they were here, verified
    python/              with --with-python: a Python, for a server without a suitable one

A file that is larger than --split is stored in parts: NAME.001, NAME.002 and so on.

A bundle is read as what a stranger hands over: sizes are compared before anything is read, names
hold no way out, links are refused. What is installed from it is checked against the locks of the
project that installs, not against those of the bundle.
"""

import argparse
import re
import sys
from pathlib import Path

from vqa_repro.install.bundle_build import make
from vqa_repro.install.bundle_format import (
    AGAIN,
    say,
)
from vqa_repro.install.bundle_open import open_bundle, read_bundle, verify
from vqa_repro.install.errors import ERRNO_CODES, ExitCode, InstallError
from vqa_repro.install.torch_builds import CHOICES
from vqa_repro.utils.errors import EXIT_BAD_INPUT, UserError

FAT32_LIMIT = (4 << 30) - 1  # bytes; no file on such a stick is larger


def bytes_of(text: str) -> int:
    """ "700M" -> 700,000,000: thousands, so that it fits whatever is meant by M."""
    found = re.fullmatch(r"(\d{1,6})([MG])", text)
    size = int(found[1]) * {"M": 10**6, "G": 10**9}[found[2]] if found else 0
    if not 0 < size <= FAT32_LIMIT:
        raise ValueError
    return size


def python_version(text: str) -> str:
    if not re.fullmatch(r"3\.1[0-5]", text):
        raise ValueError
    return text


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bundle.py", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help="make or complete a bundle")
    opening = verbs.add_parser("open", help="verify it, offer its wheels and checkpoints")
    verifying = verbs.add_parser("verify", help="hash all of it")
    for each in (making, opening, verifying):
        each.add_argument("folder", type=Path)
    for each in (making, opening):
        each.add_argument("--python", type=python_version, required=True, metavar="3.X")
        each.add_argument("--torch", choices=CHOICES, required=True)
    making.add_argument("--split", type=bytes_of, default=FAT32_LIMIT, metavar="SIZE")
    making.add_argument("--with-python", action="store_true")
    opening.add_argument("--into", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.verb == "make":
            make(args.folder.absolute(), args.python, args.torch, args.split, args.with_python)
        elif args.verb == "open":
            open_bundle(args.folder, args.into, args.python, args.torch)
        else:
            bundle = read_bundle(args.folder)
            verify(args.folder, bundle)
            say(f"{args.folder}: {len(bundle.files)} files, all as they should be")
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        where, what = error.filename or args.folder, error.strerror or str(error)
        print(f"error: {where}: {what}; fix that; {AGAIN}", file=sys.stderr)
        return ERRNO_CODES.get(error.errno or 0, ExitCode.BUNDLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
