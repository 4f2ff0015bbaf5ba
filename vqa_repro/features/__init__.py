"""Image features: extracted once, stored in one file, loaded while training."""

from vqa_repro.features.store import open_store

__all__ = ["open_store"]
