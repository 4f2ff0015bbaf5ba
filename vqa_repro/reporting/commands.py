"""The command that repeats a run, and its recipe as TOML."""

import json
import re
import shlex
from typing import Any

from vqa_repro.recipe import load_recipe, recipe_names
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError


def option(recipe: dict[str, Any], key: str) -> Any:
    section, _, option = key.partition(".")
    values = recipe.get(section)
    return values.get(option) if isinstance(values, dict) else None


def repeat(run: Run) -> tuple[str, str]:
    """Return the command that repeats the run and the recipe file it needs ("" if none).

    The data folder and the device are not part of it.
    """
    recipe = run.recipe.to_json()
    program = "python -m vqa_repro.train"
    changes = {key: option(recipe, key) for key in [*run.recipe.changed, "training.seed"]}
    if run.recipe.name in recipe_names() and "data.name" not in changes:
        try:
            same = load_recipe(run.recipe.name, changes) == run.recipe
        except UserError:
            same = False
        if same:
            given = [f"--set {shlex.quote(f'{k}={_toml(v)}')}" for k, v in changes.items()]
            return " ".join([program, "--recipe", run.recipe.name, *given]), ""
    return f"{program} --recipe recipe.toml", toml(recipe)


def toml(recipe: dict[str, Any]) -> str:
    """Return a recipe as a TOML file."""
    lines = [f"title = {_toml(recipe['title'])}"]
    for section, values in recipe.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{_key(k)} = {_toml(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
