"""Runs beside the published figures: a page to read, leaf through and fill in.

python -m vqa_repro.report runs/*                         # report.html, one file, needs no network
python -m vqa_repro.report runs/* --watch 30              # anew every 30 s until all are finished
python -m vqa_repro.report runs/* --png slides            # pictures for slides
python -m vqa_repro.report runs/* --markdown              # the table alone, for a README
"""

import argparse
import re
import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from vqa_repro.evaluation import examples
from vqa_repro.reporting import figures, fonts, summary
from vqa_repro.reporting.comparison import (
    Row,
    made_by,
    metric_names,
    read_environment,
    read_log,
    rows,
    tables,
)
from vqa_repro.reporting.html import page
from vqa_repro.run import Run, open_run
from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.utils.files import write_atomic
from vqa_repro.utils.messages import LANGUAGES, messages

SHOWN = 3  # attention pictures of each list among the PNG files


def markdown(runs: Sequence[Run]) -> str:
    """A table with a row for each recipe, its runs' mean and spread beside the published figures.

    Raises UserError, naming the run, for one that is not finished.
    """
    for run in runs:
        if not run.finished:
            raise UserError(f"{run.folder}: not finished; train it with --resume")
    lines = []
    for (data, split), of_data in tables(rows(runs)).items():
        questions = of_data[0].metrics[0]["questions"]
        lines += [f"### {data}, {split} ({questions:,} questions)", "", *_table(of_data), ""]
    return "\n".join([*lines, *_made_with(runs)])


def _table(of_data: Sequence[Row]) -> list[str]:
    names = metric_names(of_data)
    head = ["", "seeds", "published", *(_in_words(name) for name in names), "minutes", "epochs"]
    cells = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in of_data:
        minutes = statistics.mean(m["seconds"] for m in row.metrics) / 60
        cells.append(
            [
                row.title,
                str(len(row.metrics)),
                f"{row.published.accuracy:.1f}" if row.published else "",
                *(_mean(name, row) for name in names),
                f"{minutes:.1f}",
                str(row.metrics[0]["epochs"]),
            ]
        )
    return ["| " + " | ".join(row) + " |" for row in cells]


def _mean(name: str, row: Row) -> str:
    """Mean and standard deviation over the seeds, and the published figure where there is one."""
    figure = row.figure(name)
    if figure is None:
        return ""
    if name != "overall":
        beside = "" if figure.published is None else f" ({figure.published:.1f})"
        return figure.text + beside
    beside = "" if figure.difference is None else f" ({figure.difference:+.1f})"
    return f"**{figure.text}**" + beside


def _in_words(name: str) -> str:
    return {"overall": "accuracy, % (difference)"}.get(name, f"{name} (published)")


def _made_with(runs: Sequence[Run]) -> list[str]:
    """Where, and with what features."""
    environments = [read_environment(run) for run in runs]
    devices = {f"{e['device']}, torch {e['packages'].get('torch')}": None for e in environments}
    lines = ["Trained on " + "; ".join(devices) + "."]
    for made in {str(made_by(run)): made_by(run) for run in runs}.values():
        lines += ["Features: " + ", ".join(f"{key} {value}" for key, value in made.items()) + "."]
    return lines


def slides(runs: Sequence[Run], folder: Path, language: str) -> list[Path]:
    """Write curves.png, accuracy.png, and attention pictures of each recipe's first gallery.

    In English, and says so, where no font here can show ``language``.
    """
    if not fonts.can_show("".join(texts[language] for texts in messages().values())):
        print("--png: no font here shows Chinese, so these are in English; Noto Sans CJK would do")
        language = "en"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--png {folder}: cannot be made: {error.strerror}") from None
    together = rows(runs)
    written = [folder / "curves.png"]
    logs = [(row.title, [read_log(run) for run in row.runs]) for row in together]
    figures.overlaid(logs, written[-1], language)
    drawn = [(row.title, figure) for row in together if (figure := row.figure("overall"))]
    if drawn:
        written.append(folder / "accuracy.png")
        figures.beside_published(drawn, written[-1], language)
    for number, row in enumerate(together, start=1):
        run, kept = next(((r, g) for r in row.runs if (g := examples.read(r.folder))), (None, None))
        if run is None or kept is None:
            continue
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", run.folder.name).strip(".-")
        for listed, positions in kept.lists.items():
            for n, asked in enumerate([kept.asked[p] for p in positions[:SHOWN]], start=1):
                if asked.picture is not None:
                    written.append(folder / f"{number}-{name}-{listed}-{n}.png")
                    summary.draw(asked, kept.pictures[asked.picture], written[-1], language)
    return written


def write(folders: Sequence[Path], out: Path, language: str, refresh: float | None) -> bool:
    """Write the page; ``refresh`` (seconds) goes into it while a run is not finished.

    Returns whether all runs are finished.
    """
    runs = [open_run(folder) for folder in folders]
    finished = all(run.finished for run in runs)
    # A text of a stranger's may hold half a surrogate pair, which is no UTF-8.
    text = page(runs, language, None if finished else refresh).encode(errors="replace")
    write_atomic(out, lambda file: file.write(text))
    return finished


def seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 86_400:
        raise argparse.ArgumentTypeError("between 1 and 86400 seconds")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; they may still train"
    )
    parser.add_argument("--out", type=Path, help="write there (default: report.html)")
    parser.add_argument(
        "--language",
        choices=LANGUAGES,
        default="en",
        help="of --png, and which the page begins with",
    )
    parser.add_argument("--png", type=Path, metavar="DIR", help="write pictures for slides too")
    parser.add_argument(
        "--watch",
        type=seconds,
        metavar="SECONDS",
        help="write the page anew so often until all runs are finished",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="the table alone, printed or written to --out"
    )
    args = parser.parse_args(arguments)
    if args.markdown:
        if args.watch or args.png:
            raise UserError("--markdown: goes without --watch and --png")
        text = markdown([open_run(folder) for folder in args.runs])
        if args.out:
            write_atomic(args.out, lambda file: file.write(text.encode() + b"\n"))
            print(f"table: {shlex.quote(str(args.out))}")
        else:
            print(text)
        return 0
    out = args.out or Path("report.html")
    finished = write(args.runs, out, args.language, args.watch)
    print(f"page: {shlex.quote(str(out))}", flush=True)
    while args.watch and not finished:
        time.sleep(args.watch)
        finished = write(args.runs, out, args.language, args.watch)
    if args.png:
        written = slides([open_run(folder) for folder in args.runs], args.png, args.language)
        print(f"pictures for slides: {len(written)} in {shlex.quote(str(args.png))}")
    return 0


if __name__ == "__main__":
    main_guard(main)
