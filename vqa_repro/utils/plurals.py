"""Plurals in messages."""


def plural(count: int, one: str, many: str) -> str:
    """Return ``one`` for a count of 1, else ``many``: plural(n, "image is", "images are")."""
    return one if count == 1 else many
