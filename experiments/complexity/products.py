"""Time training's matrix products by each library at hand, side by side: which is fastest is the processor's doing.

Torch brings oneDNN beside its own (on x86 MKL), and NumPy brings OpenBLAS most often. ``hfa.ops.fused.matmul`` chooses
by the processor, as was seen here. One thread, float32, 1,024 tokens at the default size; interleaved, the median of
`ROUNDS`, in billions of floating-point operations a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from llvmlite.binding import get_host_cpu_name
from torch import Tensor

from hfa.ops.fused.matmul import library, openblas, times_by_openblas

ROUNDS = 7
TOKENS = 1024
LAYERS = {"gate and up": (512, 4096), "down": (2048, 512), "projection": (512, 512), "head": (512, 50257)}

Product = Callable[[Tensor, Tensor], Tensor]  # x W^T of x [M, D] and W [N, D]


def by_torch(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def by_openblas(x: Tensor, weight: Tensor) -> Tensor:
    y = x.new_empty(len(x), len(weight))
    times_by_openblas(x, weight, y)
    return y


def libraries() -> dict[str, Product]:
    """Those at hand, by their names in ``hfa.ops.fused.matmul.library``."""
    found = {"torch": by_torch}
    if torch.backends.mkldnn.is_available():
        found["oneDNN"] = by_onednn
    if openblas():
        found["OpenBLAS"] = by_openblas
    return found


def rates(products: Sequence[Product], x: Tensor, weight: Tensor, rounds: int = ROUNDS) -> list[float]:
    """GFLOP/s of each, for x [M, D] and W [N, D]."""
    seconds: list[list[float]] = [[] for _ in products]
    for _ in range(rounds + 1):  # the first warms up
        for product, taken in zip(products, seconds, strict=True):
            began = time.perf_counter()
            product(x, weight)
            taken.append(time.perf_counter() - began)
    work = 2e-9 * x.numel() * len(weight)
    return [work / statistics.median(taken[1:]) for taken in seconds]


def main() -> None:
    torch.set_num_threads(1)
    known = libraries()
    print(f"{get_host_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}: training on one thread uses {library()}.")
    print(f"GFLOP/s: {' / '.join(known)}")
    print(f"{'':16}" + "".join(f"{what:>18}" for what in ("forward", "of the input", "of the weight")))
    for name, (width, out) in LAYERS.items():
        x, weight, grad = torch.randn(TOKENS, width), torch.randn(out, width), torch.randn(TOKENS, out)
        print(f"{name:16}", end="")
        for factors in ((x, weight), (grad, weight.t()), (grad.t(), x.t())):
            found = rates(list(known.values()), *factors)
            print(f"{' / '.join(f'{rate:.0f}' for rate in found):>18}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
