"""Every fault test has a row in the table, and every row is in docs/faults.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, environ
from table import (
    DOWNLOADS,
    OTHERS,
    ROWS,
    SURROUNDINGS,
    Count,
    named,
    patterns,
    place_of,
    short,
)

DOCUMENT = PROJECT / "docs" / "faults.md"


def test_the_document_has_the_same_rows() -> None:
    rows = re.findall(r"^\| (?!fault |---)(.*?) \|", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert rows == [*DOWNLOADS, *SURROUNDINGS, *OTHERS]


def test_every_row_has_tests_and_every_injected_fault_a_row(request: pytest.FixtureRequest) -> None:
    """Check the tests collected with this one: all of them if the whole suite runs."""
    nodes = [item.nodeid for item in request.session.items]
    found = {place_of(node) for node in nodes}
    files = {Path(node.partition("::")[0]).stem for node in nodes}
    chosen = request.config.option
    if chosen.markexpr or chosen.keyword or not files.issuperset(named()):
        pytest.skip("not all tests of faults are collected")
    for row, wanted in ROWS.items():
        for ending in ("recovers", "says"):
            assert ((row, ending) in found) == bool(getattr(wanted, ending)), f"{row}: {ending}"
    names = [short(node) for node in nodes]
    unused = [p for p in patterns() if not any(re.fullmatch(p, name) for name in names)]
    assert unused == [], "no test matches these patterns"
    injected = re.compile(r"test_(recovers|gives_up_with_a_clear_error|hostile_files\w+)\[(.*)\]")
    harmless = ("honest", "chunked", "labelled_text")
    for node in nodes:
        fault = injected.search(node)
        assert not fault or fault[2] in harmless or place_of(node), f"{node} has no row"


def test_a_wrong_outcome_is_counted(tmp_path: Path) -> None:
    """Count a failing, a passing and a skipped test."""
    (tmp_path / "test_kills.py").write_text(
        "import pytest\n"
        "def test_training(record_property): record_property('recovered', 7)\n"
        "def test_extraction(): assert False\n"
        "def test_checkpoint_download(): pytest.skip('no')\n"
        "def test_another(): assert False\n"
    )
    program = (
        "import sys, pytest, table; count = table.Count(); "
        "pytest.main(['-q', sys.argv[1]], plugins=[count]); print('\\n'.join(count.lines()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environ(), "PYTHONPATH": str(Path(__file__).parent)},
    )
    counts = dict(re.findall(r"^(\S.*?)  +([\d, ]+)$", done.stdout, re.M))
    assert counts["training killed at random moments"].split() == ["7", "7", "0", "0", "0"]
    assert counts["extraction killed at random moments"].split() == ["1", "0", "0", "1", "0"]
    assert counts["killed or stopped during the download"].split() == ["0", "0", "0", "0", "1"]
    assert counts["all"].split() == ["8", "7", "0", "1", "1"]


def test_counts_start_at_zero() -> None:
    assert all("0" in line for line in list(Count().lines())[1:])
