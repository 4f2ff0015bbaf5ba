"""Measure extraction from photos, and the feature store."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import vgg19

from benchmarks.measuring import Figure, peak, seconds
from vqa_repro.data.images import read_image
from vqa_repro.features.backbones import FrozenBackbone
from vqa_repro.features.extraction import num_threads
from vqa_repro.features.extractor import Extractor, extract
from vqa_repro.features.store import StoreWriter, open_store
from vqa_repro.utils.device import has_bfloat16

VGG19_MACS = 4 * 19.51e9  # of the convolutions at 448 x 448: four times those at 224 x 224


def extraction_figures(device: torch.device) -> Iterator[Figure]:
    """Measure VGG-19 at 448 x 448 with random weights, which are as fast as trained ones.

    Only the network, only decoding, and the whole extraction of photos into a store.
    """

    count = 8192 if device.type == "cuda" else 8
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "vgg19.pth")
        torch.save({f"features.{k}": v for k, v in vgg19().features.state_dict().items()}, weights)
        photos = synthetic_photos(Path(folder))
        images = {str(i): photos[i % len(photos)] for i in range(count)}

        def decode() -> None:
            with ThreadPoolExecutor(num_threads()) as pool:
                list(pool.map(lambda path: read_image(path, 448), sample))

        sample = [photos[i % len(photos)] for i in range(16 * num_threads())]
        decode()
        start = time.perf_counter()  # wall-clock time, because there are many threads
        decode()
        rate = len(sample) / (time.perf_counter() - start)
        yield Figure("decoding photos of 640 x 480", rate, "images/s", f"{num_threads()} threads")
        for precision in ("float32", "bfloat16") if has_bfloat16(device) else ("float32",):
            network = FrozenBackbone("vgg19", weights, "caffe", device, precision)
            batch = torch.from_numpy(Extractor(network).buffer()).to(device).random_()

            def compute() -> None:
                with torch.inference_mode():
                    network(batch)  # noqa: B023

            limit = peak(device, getattr(torch, precision)) / VGG19_MACS
            rate = len(batch) / seconds(compute, device, 3)
            yield Figure(f"VGG-19 at 448 x 448, {precision}", rate, "images/s")
            yield Figure(f"  of the limit, network in {precision}", 100 * rate / limit, "%")
            start = time.perf_counter()
            extract(images, Path(folder, f"{precision}.safetensors"), network)
            rate = count / (time.perf_counter() - start)
            yield Figure(f"extraction, {precision}", rate, "images/s")
            yield Figure(f"  of the limit, extraction in {precision}", 100 * rate / limit, "%")


def synthetic_photos(folder: Path) -> list[Path]:
    """Write JPEG files of 640 x 480 of about the size of photos: 130 kB."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(16)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((640, 480))
        fine = rng.normal(0, 5, (480, 640, 1))
        Image.fromarray(np.clip(coarse + fine, 0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def store_figures(rows: Tensor) -> Iterator[Figure]:
    """Measure opening a store of synthetic features, and reading random rows of it."""

    values = rows[:512].cpu().numpy()
    keys = [str(i) for i in range(len(values))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "synthetic.safetensors")
        writer = StoreWriter(path, keys, values.shape[1:], values.dtype, {"backbone": "synthetic"})
        for row, value in enumerate(values):
            writer.write(row, value)
        writer.finish()
        start = time.perf_counter()
        store = open_store(path)
        yield Figure("opening a store", 1000 * (time.perf_counter() - start), "ms")
        which = np.random.default_rng(0).integers(0, len(values), 256)
        took = seconds(lambda: store.rows[which], torch.device("cpu"), 5)
        yield Figure("random images from the mapped file, cached", 256 / took, "images/s")
