"""The plain models of the benchmark compute the same as the models of the package."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import LIMIT, PROJECT, environ

sys.path.insert(0, str(PROJECT))
from benchmarks.plain import PlainHieCoAtt, PlainSAN
from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.san import SAN

SAN_OPTIONS = {"layers": 2, "embedding": 8, "hidden": 12, "attention": 10, "dropout": 0.0}
HIECOATT_OPTIONS = {"hidden": 8, "last_hidden": 10, "dropout": 0.0}


@pytest.mark.parametrize(
    ("ours", "plain", "options"),
    [(SAN, PlainSAN, SAN_OPTIONS), (HieCoAtt, PlainHieCoAtt, HIECOATT_OPTIONS)],
)
def test_both_give_the_same_answers_and_gradients(
    ours: type[torch.nn.Module], plain: type[torch.nn.Module], options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    network, reference = ours(20, 7, 6, **options).double(), plain(20, 7, 6, **options).double()
    reference.load_state_dict(network.state_dict())
    grid = torch.randn(3, 9, 6, dtype=torch.float64)
    image_of = torch.tensor([0, 0, 1, 2, 2])
    lengths = torch.tensor([4, 1, 6, 2, 3])
    tokens = torch.randint(1, 20, (5, 6)) * (torch.arange(6) < lengths[:, None])
    logits = network(grid, tokens, lengths, image_of).logits
    expected = reference(grid[image_of], tokens, lengths)
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for (name, a), b in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [("step", "--model", "hiecoatt"), ("epoch", "--feature-placement", "disk")],
    ids=" ".join,
)
def test_the_benchmark_runs(part: tuple[str, ...]) -> None:
    command = [sys.executable, "benchmarks/run.py", "--share", "0.0001", "--steps", "1", "--json"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--only", *part],
        cwd=PROJECT,
        env=environ(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert "synthetic features of 40 images" in output["data"]
    assert output["figures"] and all(figure["value"] > 0 for figure in output["figures"])


@pytest.mark.slow
def test_the_benchmark_of_shared_cores_runs() -> None:
    command = [sys.executable, "benchmarks/shared_cores.py", "--rounds=1", "--seconds=1", "--json"]
    output = subprocess.check_output(command, cwd=PROJECT, env=environ(), timeout=LIMIT)
    figures = json.loads(output)
    assert figures.keys() >= {"alone, default", "shared, package"}
    assert all(value > 0 for value in figures.values())
