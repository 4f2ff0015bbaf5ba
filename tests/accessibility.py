"""What axe-core finds wrong on a page, and what the Tab key reaches there."""

from typing import Any

import pytest


def violations(page: Any) -> list[str]:
    """Return each violation that axe-core finds on ``page``, with its element."""
    module = "axe_playwright_python.sync_playwright"  # brings axe-core; reads no network
    axe = pytest.importorskip(module, reason="axe-playwright-python is not installed").Axe()
    found = axe.run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


# Controls that Tab has to reach. Of a group of radio buttons it reaches the checked one.
CONTROLS = """() => [...document.querySelectorAll(
  "a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter((one) => one.checkVisibility() && !one.disabled && (one.type !== "radio" || one.checked))
  .map((one, index) => one.dataset.control = String(index))"""
# The focused control, and whether it or the label that stands for it has an outline.
FOCUSED = """() => {
  const one = document.activeElement;
  const near = [one, one.nextElementSibling, one.parentElement].filter(Boolean);
  const outlined = near.some((each) => getComputedStyle(each).outlineStyle !== "none");
  return [one.dataset.control ?? null, outlined, one.outerHTML.slice(0, 200)];
}"""


def unreachable(page: Any) -> list[str]:
    """Press Tab through ``page``; return the controls missed and those without visible focus."""
    expected = page.evaluate(CONTROLS)
    assert expected
    page.evaluate("document.activeElement.blur()")
    seen, wrong = set(), []
    for _ in range(2 * len(expected)):
        page.keyboard.press("Tab")
        control, outlined, html = page.evaluate(FOCUSED)
        if control in seen:
            break
        if control is not None:
            seen.add(control)
            if not outlined:
                wrong.append(f"no visible focus: {html}")
    missed = [page.locator(f"[data-control='{one}']") for one in expected if one not in seen]
    return wrong + [f"not reached: {one.evaluate('e => e.outerHTML')[:200]}" for one in missed]
