"""Triton compiles the kernels for all cards that the installed torch serves, present or absent."""

import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from vqa_repro.models.common import group_by_image
from vqa_repro.models.ops.attention import too_old_for_triton

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this platform"),
    # Triton 3.9 announces another default of an option that the kernels set themselves.
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
CAPABILITIES = [50, 60, 61, 70, 75, 80, 86, 89, 90, 100, 120]
Compiled = list[tuple[str, bytes]]  # name and machine code of each kernel


def served(capability: int) -> bool:
    """Return whether the installed torch has code for this card: same major, same or lower minor.

    A build without CUDA has none; there the cards of the newest build are tried.
    """
    # torch.cuda.get_arch_list() is empty on a machine without a GPU.
    flags = torch._C._cuda_getArchFlags() if torch.version.cuda else ""
    arches = (flags or "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120").split()
    numbers = [int(arch.split("_")[1]) for arch in arches if arch.startswith("sm_")]
    return any(n // 10 == capability // 10 and n <= capability for n in numbers)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Compiled]:
    """Compile every kernel that is launched instead of running it."""
    from triton.runtime.jit import JITFunction

    kernels: Compiled = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, **options: object) -> None:
        kernel = run(self, *args, **{**options, "warmup": True})
        kernels.append((self.fn.__name__, kernel.asm["cubin"]))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    yield kernels


def set_card(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    """Let Triton believe in a card of this compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_device(self) -> int:
            return capability  # kernels are cached by device

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    driver = triton.runtime.driver
    name = "_active" if hasattr(driver, "_active") else "active"
    monkeypatch.setattr(driver, name, Driver())


def launch_all(dtype: torch.dtype, dropouts: tuple[float, ...]) -> None:
    """Launch every kernel with the sizes of the papers."""
    from vqa_repro.models.ops import triton_kernels

    groups = group_by_image(torch.tensor([0, 0, 1]), torch.empty(2))
    image, question, v, w = (
        torch.zeros(shape, dtype=dtype, requires_grad=True)
        for shape in ((2, 196, 1024), (3, 512), (2, 196, 1024), (512,))
    )
    for words in (question, question[:, None, :].repeat(1, 196, 1)):
        for dropout in dropouts:
            half = image.chunk(2, dim=2)[0]
            scores = triton_kernels.additive_scores(half, words, w, groups, dropout)
            scores.sum().backward()
    triton_kernels.pool(scores.detach().softmax(1), v, groups).sum().backward()


def launch_updates() -> None:
    """Launch the update of SGD and RMSprop on weights of several sizes."""
    from vqa_repro.training.fused_update import FusedUpdate

    for kind in (torch.optim.SGD, torch.optim.RMSprop):
        weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((9000, 20), (7,), (1, 512))]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer = kind([{"params": weights, "lr": torch.tensor(0.1)}], lr=0.1, momentum=0.9)
        FusedUpdate(optimizer, set(weights), weight_decay=0.1, clip=0.1, clip_per="tensor").step()


def is_empty(binary: bytes) -> bool:
    return not binary.startswith(b"\x7fELF")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_for_every_card_that_is_served(
    capability: int, monkeypatch: pytest.MonkeyPatch, compiled: Compiled
) -> None:
    if not served(capability):
        pytest.skip(f"torch {torch.__version__} has no code for sm_{capability}")
    if too_old_for_triton(divmod(capability, 10)):
        return  # the plain form computes there
    set_card(monkeypatch, capability)
    launch_all(torch.bfloat16 if capability >= 80 else torch.float32, (0.5,))
    launch_updates()
    assert len({name for name, _ in compiled}) == 7
    assert not any(is_empty(binary) for _, binary in compiled)


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_keep_to_their_registers(
    capability: int, monkeypatch: pytest.MonkeyPatch, compiled: Compiled, tmp_path: Path
) -> None:
    """A number that is spilled makes a way to memory and back."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    set_card(monkeypatch, capability)
    for dtype in (torch.bfloat16, torch.float32):
        launch_all(dtype, (0.0, 0.5))
    assert len(compiled) == 22
    for number, (name, binary) in enumerate(compiled):
        file = tmp_path / f"{number}.cubin"
        file.write_bytes(binary)
        command = [tool, "-res-usage", file]
        usage = subprocess.run(command, capture_output=True, text=True).stdout
        assert int(usage.split("STACK:")[1].split()[0]) <= 16, (name, usage)  # bytes
