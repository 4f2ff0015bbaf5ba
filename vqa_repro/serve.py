"""Serve a web page that answers questions about images and shows where the models attend.

python -m vqa_repro.serve runs/easy-vqa
python -m vqa_repro.serve runs/san runs/hiecoatt --port 8000

The page is reachable from this machine only (127.0.0.1), and only with the token in the printed
URL; the printed ssh command forwards it to a laptop. Ctrl-C, SIGTERM or a hang-up stops it: exit
code 0.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from vqa_repro.utils.arguments import (
    add_device_option,
    add_weights_option,
    parse_arguments,
    path_argument,
)
from vqa_repro.utils.errors import UserError, main_guard

if TYPE_CHECKING:
    from vqa_repro.web.server import Server

PORT = 8420  # constant between starts, and with it the tunnel
TOKEN = re.compile("[A-Za-z0-9_-]{16,200}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", type=path_argument, nargs="*", metavar="RUN", help="run folders to compare"
    )
    parser.add_argument(
        "--run", type=path_argument, action="append", default=[], help=argparse.SUPPRESS
    )
    add_weights_option(parser)
    parser.add_argument(
        "--port", type=int, help=f"default: {PORT}, or a free port if it is in use; 0: a free port"
    )
    parser.add_argument(
        "--token",
        type=path_argument,
        metavar="FILE",
        help="keep the token in FILE (created if missing), so that the URL stays the same",
    )
    add_device_option(parser)


def read_token(file: Path | None) -> str:
    """Return the token in ``file``, created with a new one if missing; a new one without a file."""
    token = secrets.token_urlsafe(24)
    if file is None:
        return token
    try:
        with suppress(FileExistsError), open(file, "x", opener=_private) as new:
            new.write(f"{token}\n")
            return token
        with file.open(encoding="utf-8", errors="replace") as old:
            token = old.read(1000).strip()
    except OSError as error:
        raise UserError(f"--token {file}: {error.strerror}; name another file") from None
    if not TOKEN.fullmatch(token):
        fix = "delete it, or write 16 to 200 of A-Z a-z 0-9 _ - into it"
        raise UserError(f"--token {file}: holds no usable token; {fix}")
    return token


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def listen(args: argparse.Namespace, token: str) -> Server:
    """Open the runs and the port. Raise UserError if one of them cannot be opened."""
    import vqa_repro
    from vqa_repro.web.runs import Runs, samples
    from vqa_repro.web.server import Server

    folders = [*args.runs, *args.run]
    runs = Runs([vqa_repro.load(f, device=args.device, weights=args.weights) for f in folders])
    try:
        return Server(PORT if args.port is None else args.port, runs, samples(folders), token)
    except (OSError, OverflowError) as error:
        if args.port is not None:
            reason = "no port has this number"
            if isinstance(error, OSError):
                reason = os.strerror(error.errno or 0)
            fix = "name another port, or 0 for any free one"
            raise UserError(f"--port {args.port}: {reason}; {fix}") from None
        print(f"port {PORT} is in use; serving on another one")
        return Server(0, runs, samples(folders), token)


def stop_on_signals(server: Server) -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP stop ``server``, unless they are ignored (``nohup``).

    An exception would close the connection under the thread that has just begun to answer it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def main(arguments: list[str] | None = None) -> int:
    parser, args = parse_arguments("serve", __doc__, add_arguments, arguments)
    if not args.runs and not args.run:
        parser.error("name at least one run folder")
    token = read_token(args.token)

    from PIL import Image

    from vqa_repro.evaluation.titles import model_title
    from vqa_repro.utils.device import describe
    from vqa_repro.utils.tunnel import tunnel_lines

    # Pillow only warns of images up to twice its limit, which take half a gigabyte to decode.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with listen(args, token) as server:
        stop_on_signals(server)
        predictors = server.application.runs.predictors
        print(f"on {describe(predictors[0].device)}:")
        for predictor in predictors:
            print(f"  {predictor.run.folder}  {model_title(predictor.run.recipe)}")
            if note := predictor.run.note():
                print(f"  {note}")
        path = f"/?token={token}"
        print(f"open http://127.0.0.1:{server.port}{path}")
        print(*tunnel_lines(server.port, path), "Ctrl-C stops it", sep="\n", flush=True)
        server.serve_forever()
    with suppress(OSError):  # the terminal has gone
        print("stopped", flush=True)
    # At once: a thread that is still computing in torch would crash the interpreter at exit.
    os._exit(0)


if __name__ == "__main__":
    main_guard(main)
