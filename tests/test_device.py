"""Which device is chosen, where the GPUs are only said to be there."""

import pytest
import torch

from vqa_repro.device import choose_device
from vqa_repro.errors import UserError


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_becomes_the_current_one_by_its_number(
    monkeypatch: pytest.MonkeyPatch, name: str, index: int
) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device(name) == torch.device("cuda", index)
    assert current == [torch.device("cuda", index)]  # torch takes none without a number


@pytest.mark.parametrize(
    ("name", "said"), [("cuda:2", "sees 2 GPUs"), ("xpu", "only cpu and cuda"), ("gpu", "no such")]
)
def test_another_one_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=said):
        choose_device(name)
