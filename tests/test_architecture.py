"""The layers of the package: imports go down, no module imports a verb, code is short.

A module's layer is that of its sub-package. Imports within functions and for type checking count.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import PROJECT

PACKAGE = PROJECT / "vqa_repro"
VERBS = {"train", "evaluate", "predict", "extract", "report", "serve", "doctor", "export", "check"}
# Higher ones may import lower ones; neighbours on one line do not import each other.
LAYERS = [
    {"utils"},
    {"data", "recipe", "install"},
    {"release"},
    {"features", "run"},
    {"models"},
    {"evaluation", "diagnostics"},
    {"training", "reporting", "web"},
    VERBS,
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# vqa_repro/__init__.py is the public face: it imports lazily what it offers.
PUBLIC = "vqa_repro"
MAX_FILE, MAX_FUNCTION = 350, 60
INSTALL_MAY_IMPORT = {
    f"vqa_repro.utils.{name}" for name in ("errors", "files", "subprocesses", "tunnel")
}
FILES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """Return the modules of any package that ``module`` imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in FILES else str(node.module))
    return names


def edges(module: str) -> set[str]:
    """Return the modules of this package that ``module`` imports."""
    return {name for name in imports(module) if name in FILES and name != PUBLIC}


def top(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_layer() -> None:
    assert {top(module) for module in FILES if module != PUBLIC} == set(LEVEL)


def test_imports_go_down() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in FILES
        if module != PUBLIC
        for name in edges(module)
        if top(module) != top(name) and LEVEL[top(name)] >= LEVEL[top(module)]
    ]
    assert sorted(wrong) == []


def test_no_module_imports_a_verb() -> None:
    wrong = [(module, name) for module in FILES for name in edges(module) if top(name) in VERBS]
    assert sorted(wrong) == []


def test_there_are_no_import_cycles() -> None:
    sorter = TopologicalSorter({module: edges(module) - {module} for module in FILES})
    assert list(sorter.static_order())


def test_install_needs_only_the_standard_library() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in FILES
        if module.startswith("vqa_repro.install")
        for name in imports(module)
        if name.split(".")[0] not in sys.stdlib_module_names
        and name != "tomli"  # tomllib's name before Python 3.11, imported where it is there
        and name not in INSTALL_MAY_IMPORT
        and not name.startswith("vqa_repro.install")
    ]
    assert sorted(wrong) == []


def test_install_imports_without_third_party_packages() -> None:
    names = [name for name in FILES if name.startswith("vqa_repro.install")]
    names = [name for name in names if not name.endswith("__main__")]
    program = (
        f"import sys, importlib; sys.path.insert(0, {str(PROJECT)!r})\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_and_functions_are_short() -> None:
    long = []
    for path in (*FILES.values(), *(PROJECT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_FILE:
            long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = int(node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{path}: {node.name}: {lines} lines")
    assert long == []


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
)
def test_tests_mirror_the_package(folder: str) -> None:
    assert list((PROJECT / "tests" / folder).glob("test_*.py")), f"tests/{folder} is missing"
