"""Time training's matrix products by both of torch's libraries, side by side: which is faster is the processor's doing.

``hfa.ops.fused.matmul`` goes by it. One thread, float32, 1,024 tokens at the default size; interleaved, the median of
`ROUNDS`, in billions of floating-point operations a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from llvmlite.binding import get_host_cpu_name
from torch import Tensor

from hfa.ops.fused.matmul import by_onednn

ROUNDS = 7
TOKENS = 1024
LAYERS = {"gate and up": (512, 4096), "down": (2048, 512), "projection": (512, 512), "head": (512, 50257)}


def mkl(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def rates(x: Tensor, weight: Tensor, rounds: int = ROUNDS) -> dict[str, float]:
    """GFLOP/s of ``x W^T`` by library, for x [M, D] and W [N, D]."""
    seconds: dict[Callable[[Tensor, Tensor], Tensor], list[float]] = {mkl: [], onednn: []}
    for _ in range(rounds + 1):  # the first warms up
        for product, taken in seconds.items():
            began = time.perf_counter()
            product(x, weight)
            taken.append(time.perf_counter() - began)
    work = 2e-9 * x.numel() * len(weight)
    return {product.__name__: work / statistics.median(taken[1:]) for product, taken in seconds.items()}


def main() -> None:
    torch.set_num_threads(1)
    used = "oneDNN" if by_onednn() else "MKL"
    print(f"{get_host_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}: training uses {used} here.")
    print(f"{'GFLOP/s, MKL / oneDNN':24}{'forward':>14}{'of the input':>14}{'of the weight':>14}")
    for name, (width, out) in LAYERS.items():
        x, weight, grad = torch.randn(TOKENS, width), torch.randn(out, width), torch.randn(TOKENS, out)
        found = [rates(*factors) for factors in ((x, weight), (grad, weight.t()), (grad.t(), x.t()))]
        print(f"{name:24}" + "".join(f"{one['mkl']:.0f} / {one['onednn']:.0f}".rjust(14) for one in found))


if __name__ == "__main__":
    main()
