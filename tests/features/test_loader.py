"""Features in every placement: the same numbers, at the place that was chosen."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LIMIT, options

from vqa_repro import train
from vqa_repro.data.batching import plan_batches
from vqa_repro.data.questions import Questions
from vqa_repro.features import loader as rows_module
from vqa_repro.features.compressed import compress, compressed_bytes
from vqa_repro.features.loader import (
    PLACEMENTS,
    FeatureLoader,
    Fetched,
    Placement,
    choose_placement,
)
from vqa_repro.features.store import Store, StoreWriter, open_store
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.memory import free_on_host

CPU = torch.device("cpu")
GB = 10**9


def write(path: Path, values: np.ndarray) -> Store:
    keys = [str(n) for n in range(len(values))]
    writer = StoreWriter(path, keys, values.shape[1:], values.dtype, {"backbone": "test"})
    for row, value in enumerate(values):
        writer.write(row, value)
    writer.finish()
    return open_store(path)


def sparse(count: int, seed: int = 0) -> np.ndarray:
    """Return sparse, empty and dense rows, with -0.0, infinities and NaN."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((count, 6, 8)) < 0.1, rng.normal(size=(count, 6, 8)), 0)
    values[3 % count], values[5 % count], values[-1, -1, -1] = 0, 1.5, 7
    values[0, 0, :4] = [-0.0, np.inf, np.nan, 0.0]
    return values.astype(np.float16)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(rows_module, "PART", 7 * 96)  # several parts, the last one not full
    return write(tmp_path / "f.safetensors", sparse(40))


def bits(values: torch.Tensor | np.ndarray) -> bytes:
    return np.asarray(values).tobytes()


def row_lists(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Return batches of rows of a few images each, some empty."""
    draw = random.Random(seed)
    sizes = [draw.randrange(0, 9) for _ in range(count)]
    return [torch.tensor(draw.sample(range(40), n), dtype=torch.int64) for n in sizes]


@pytest.mark.parametrize("where", PLACEMENTS)
def test_features_are_those_of_the_store_in_every_placement(store: Store, where: Placement) -> None:
    loader = FeatureLoader(store, CPU, where)
    assert loader.placement == where
    for rows in row_lists(20):
        assert bits(loader[rows]) == bits(store.rows[rows.numpy()])
    assert "0.00 GB of features" in loader.description and "on the host" in loader.description


@pytest.mark.parametrize("where", PLACEMENTS)
def test_prefetched_features_come_in_order(store: Store, where: Placement) -> None:
    loader, lists = FeatureLoader(store, CPU, where), row_lists(50)
    for count, (rows, features) in enumerate(zip(lists, loader.prefetch(lists), strict=True)):
        assert bits(features) == bits(store.rows[rows.numpy()])
        others = lists[(7 * count) % 50]  # single rows may be read at the same time
        assert bits(loader[others]) == bits(store.rows[others.numpy()])
        if count == 44:  # a loop that ends early leaves no thread behind
            break
    for rows, features in zip(lists[:5], loader.prefetch(lists[:5]), strict=True):
        assert bits(features) == bits(store.rows[rows.numpy()])
    assert list(loader.prefetch([])) == []


@pytest.mark.parametrize("where", PLACEMENTS)
def test_batches_hold_their_features_and_questions(store: Store, where: Placement) -> None:
    draw = torch.Generator().manual_seed(0)
    row = torch.randint(0, 40, (70,), generator=draw).sort().values
    lengths = torch.randint(1, 6, (70,), generator=draw)
    numbers = torch.arange(70)
    tokens = (numbers[:, None] + 2) * (torch.arange(6) < lengths[:, None])
    questions = Questions(numbers, tokens, lengths, row, numbers % 5, numbers[:, None] % 3)
    plan = plan_batches(questions, 9, "grouped", 3)
    seen = []
    for batch in FeatureLoader(store, CPU, where).epoch(questions, plan):
        at = batch.positions
        seen += at.tolist()
        assert bits(batch.features[batch.image_index]) == bits(store.rows[row[at].numpy()])
        assert batch.tokens.shape[1] == batch.lengths.max() and (batch.lengths == lengths[at]).all()
        assert (batch.tokens == tokens[at, : batch.tokens.shape[1]]).all()
        assert (batch.label == at % 5).all() and (batch.answers[:, 0] == at % 3).all()
        assert batch.total == len(batch) and float(batch.weight.sum()) == pytest.approx(1)
    assert sorted(seen) == list(range(70))


def test_the_next_features_are_prefetched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, lists = FeatureLoader(store, CPU, "disk"), row_lists(10)
    fetched: list[torch.Tensor] = []
    original = loader._fetch

    def count(rows: torch.Tensor) -> Fetched:
        fetched.append(rows)
        return original(rows)

    monkeypatch.setattr(loader, "_fetch", count)
    for number, _ in enumerate(loader.prefetch(lists)):
        expected = min(number + 3, len(lists))
        deadline = time.monotonic() + LIMIT
        while len(fetched) < expected and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(fetched) == expected, "each once, two ahead"


def test_a_process_may_hold_a_share_of_the_rows(store: Store) -> None:
    share = Store(store.path, store.rows[1::3], store.row_of, store.made_by)
    for where in PLACEMENTS:
        rows = FeatureLoader(share, CPU, where)
        assert bits(rows[torch.tensor([4, 0])]) == bits(store.rows[[13, 1]])


def test_pixels_and_empty_rows(tmp_path: Path) -> None:
    pixels = np.arange(5 * 3 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3, 3)
    store = write(tmp_path / "p", pixels)
    for where in ("device", "pinned", "disk"):
        assert bits(FeatureLoader(store, CPU, where)[torch.tensor([4, 2])]) == bits(pixels[[4, 2]])
    with pytest.raises(UserError, match="--feature-placement compressed"):
        FeatureLoader(store, CPU, "compressed")
    nothing = Store(Path("none"), np.zeros((3, 1, 1), np.float16), {}, {})
    assert FeatureLoader(nothing, CPU)[torch.tensor([2, 2])].shape == (2, 1, 1)


def test_packing_is_lossless_and_takes_the_predicted_memory() -> None:
    values = torch.from_numpy(sparse(500))
    predicted = compressed_bytes(values, 500)
    for available in (1, predicted):  # too little, then enough
        packed = compress(values.split(64), 500, available)
        which = torch.randperm(500)
        assert bits(packed[which]) == bits(values[which])
    assert 0.9 * predicted < packed.nbytes < 1.1 * predicted < values.nbytes
    empty = torch.zeros(2, 1, 8, dtype=torch.float16)
    assert bits(compress([empty], 2, 0)[torch.tensor([1])]) == bits(empty[1:])


@pytest.mark.parametrize(
    ("dense", "packed", "device", "free_device", "free_host", "place"),
    [
        (25, 4, "cuda", 140, 200, "device"),
        (25, 4, "cuda", 24, 200, "compressed"),  # rather than 25 GB of pinned memory
        (25, 4, "cuda", 7.5, 12, "compressed"),  # VQA v2 on a GPU of 8 GB in a host with 16 GB
        (25, None, "cuda", 7.5, 12, "disk"),
        (100, 60, "cuda", 79, 200, "pinned"),  # not worth packing
        (25, 4, "cuda", 4, 64, "pinned"),
        (25, 4, "cuda", 4, 40, "disk"),
        (25, 4, "cpu", 60, 60, "device"),
        (25, 4, "cpu", 12, 12, "disk"),
        (0.3, 0.1, "cpu", 2, 2, "device"),
    ],
)
def test_the_placement_depends_on_free_memory(
    dense: float,
    packed: float | None,
    device: str,
    free_device: float,
    free_host: float,
    place: Placement,
) -> None:
    sizes = [None if n is None else int(n * GB) for n in (dense, packed)]
    assert choose_placement(*sizes, device, int(free_device * GB), int(free_host * GB)) == place


def test_rows_are_read_from_disk_when_memory_is_short(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "free_on_host", lambda: store.rows.nbytes)
    assert FeatureLoader(store, CPU).placement == "disk"
    monkeypatch.setattr(rows_module, "free_on_host", lambda: 3 * store.rows.nbytes)
    assert FeatureLoader(store, CPU).placement == "device"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemAvailable:   20000000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 20_000_000 * 1024),
        (  # of a Slurm job; its step has no limit
            {
                "proc/self/cgroup": "0::/job_7/step_0\n",
                f"{V2}/job_7/step_0/memory.max": "max\n",
                f"{V2}/job_7/step_0/memory.current": "1\n",
                f"{V2}/job_7/step_0/memory.stat": "inactive_file 0\nactive_file 0\n",
                f"{V2}/job_7/memory.max": "1000\n",
                f"{V2}/job_7/memory.current": "700\n",
                f"{V2}/job_7/memory.stat": "anon 9\ninactive_file 50\nactive_file 25\nfile 1\n",
            },
            375,
        ),
        (  # of a container that cannot see its own path
            {
                "proc/self/cgroup": "0::/docker/abc\n",
                f"{V2}/memory.max": "900\n",
                f"{V2}/memory.current": "1000\n",
                f"{V2}/memory.stat": "inactive_file 10\n",
            },
            0,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n3:memory,hugetlb:/uid_1/job_2\n0::/y\n",
                f"{V1}/uid_1/job_2/memory.limit_in_bytes": "5000\n",
                f"{V1}/uid_1/job_2/memory.usage_in_bytes": "1000\n",
                f"{V1}/uid_1/job_2/memory.stat": "total_inactive_file 100\ninactive_file 7\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
            },
            4100,
        ),
    ],
)
def test_free_memory_respects_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    root = machine(tmp_path, files)
    assert free_on_host(root) == free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_on_host(root) == free // 4


def test_free_memory_of_this_machine() -> None:
    assert 10**7 < free_on_host() < 10**13
    assert free_on_host(Path("/nowhere")) > 10**7, "half of what there is"


@pytest.mark.slow
def test_training_is_the_same_in_every_placement_and_reports_it(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = []
    for where, text in (("device", "in the memory of the host"), ("disk", "on the disk")):
        run = tmp_path / where
        given = [*options(drawn_folder, run, 1), "--root", str(tmp_path), "--device", "cpu"]
        assert train.main([*given, "--feature-placement", where]) == 0
        assert text in capsys.readouterr().out
        assert text in json.loads((run / "environment.json").read_text())["features"]
        weights.append((run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
