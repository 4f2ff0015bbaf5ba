"""``python -m vqa_repro`` is the ``vqa`` command."""

from vqa_repro.cli import run

if __name__ == "__main__":
    run()
