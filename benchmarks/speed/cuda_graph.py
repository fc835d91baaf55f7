"""Work recorded once as a CUDA graph, by PyTorch's own means alone, and the name of the card."""

from collections.abc import Callable

import torch

WARM = 3


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """Run some work a few times beside the main stream, as capturing asks for, and record it.

    Arguments:
        work: What reads and writes tensors that stay where they are.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def named(device: str, threads: int) -> str:
    """Return what a result says of where it was measured."""
    if device == "cuda":
        return f"cuda, {torch.cuda.get_device_name()}"
    return "cpu, 1 thread" if threads == 1 else f"cpu, {threads} threads"


def facts(device: str) -> dict[str, str]:
    """Return what times on a card hang on besides: CUDA's version and the precision of products."""
    if device == "cpu":
        return {}
    precision = torch.get_float32_matmul_precision()
    return {"cuda": str(torch.version.cuda), "float32 products": precision}
