"""The check of training steps on a device, rehearsed on the CPU; it finds wrong ones."""

import pytest
import torch
from torch import Tensor

from vqa_repro.models.common import QuestionGroups
from vqa_repro.models.ops import cpu
from vqa_repro.training.gpu_check import run_check

CPU = torch.device("cpu")


def test_a_right_step_passes_and_is_timed() -> None:
    results = list(run_check("san-1-cnn-vqa-v1-val2", CPU))
    checks = [result for result in results if "ok" in result]
    assert len(checks) >= 4 and all(result["ok"] for result in checks), checks
    times = {result["time"]: result for result in results if "milliseconds" in result}
    assert set(times) == {"eager", "graph"}
    assert all(result["milliseconds"] > 0 for result in times.values())


def test_a_wrong_gradient_and_a_crash_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.pool

    def wrong(p: Tensor, v: Tensor, groups: QuestionGroups) -> Tensor:
        return 1.05 * right(p, v, groups)

    def crash(*_: object) -> Tensor:
        raise RuntimeError("device-side assert triggered")

    for pool, reason in ((wrong, "gradients by"), (crash, "device-side assert")):
        monkeypatch.setattr(cpu, "pool", pool)
        results = {r["what"]: r for r in run_check("san-1-cnn-vqa-v1-val2", CPU) if "ok" in r}
        assert results["plain PyTorch, float32"]["ok"]
        failed = results["CPU kernels, float32"]
        assert not failed["ok"] and reason in failed["detail"]


def test_every_placement_serves_the_features_of_the_store() -> None:
    results = list(run_check("placements", CPU))
    assert [r["what"].split(": ")[1] for r in results] == [
        "device", "compressed", "pinned", "disk",
    ]  # fmt: skip
    assert all(result["ok"] for result in results)
