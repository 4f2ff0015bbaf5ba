"""The choice of the device, with simulated GPUs."""

from pathlib import Path

import pytest
import torch

from vqa_repro.utils.device import choose_device, has_bfloat16
from vqa_repro.utils.errors import UserError


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_selected_by_its_number(
    monkeypatch: pytest.MonkeyPatch, name: str, index: int
) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device(name) == torch.device("cuda", index)
    assert current == [torch.device("cuda", index)]  # torch does not accept one without a number


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cuda:2", "sees 2 GPUs"), ("xpu", "only cpu and cuda"), ("gpu", "no such")],
)
def test_other_devices_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=expected):
        choose_device(name)


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("flags\t\t: fma avx2 f16c", False),  # Zen 3, Haswell
        ("flags\t\t: avx512f avx512_vnni", False),  # Cascade Lake
        ("flags\t\t: avx512f avx512_bf16 clflushopt", True),  # Zen 4
        ("flags\t\t: amx_bf16 amx_tile", True),
        ("Features\t: fp asimd i8mm bf16 dgh", True),  # Neoverse V1
    ],
)
def test_which_processors_have_bfloat16(line: str, has: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\npower management:\n")
    assert has_bfloat16(torch.device("cpu"), tmp_path / "cpuinfo") is has
    assert not has_bfloat16(torch.device("cpu"), tmp_path / "no such file")


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_which_gpus_have_bfloat16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    has_bfloat16.cache_clear()
    assert has_bfloat16(torch.device("cuda:0")) is has
    has_bfloat16.cache_clear()
