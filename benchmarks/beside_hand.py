"""The figure of steps beside the same steps by hand, for scripts that run as commands."""

import time
from collections.abc import Mapping

from paired import Work, interleaved, ratios
from results import Result


def slowest_beside_hand(
    name: str,
    works: Mapping[str, Work],
    *,
    steps: int,
    blocks: int,
    warm: int,
    unit: str,
    data: str,
) -> None:
    """Write and print the figure of the slowest program, each beside the same steps by hand.

    Arguments:
        name: The figure's.
        works: Blocks of steps: of each program, and of what is called ``"<program>, by hand"``.
        steps: Of a block.
        blocks: Rounds that are timed.
        warm: Steps of each before the first.
        unit: What a program's figure is.
        data: What the steps are taken on.
    """
    start = time.perf_counter()
    for work in works.values():
        for _ in range(warm // steps):
            work()
    times = interleaved(works, blocks)
    names = [each for each in works if not each.endswith(", by hand")]
    found = {each: ratios(times[each], times[f"{each}, by hand"]) for each in names}
    slowest = max(found.values(), key=lambda each: each["cpu"].median)["cpu"]
    result = Result(
        name=name,
        value=slowest.median,
        stderr=slowest.stderr,
        unit=unit,
        estimator=f"median ratio of processor times over {blocks} interleaved blocks of {steps} "
        "steps, traced",
        published="none",
        target="<= 1.0",
        data=data,
        binarization="none",
        seed=0,
        seconds=time.perf_counter() - start,
        details={
            each: {clock: vars(ratio) for clock, ratio in clocks.items()}
            for each, clocks in found.items()
        },
    )
    print(result.write(), {each: clocks["cpu"] for each, clocks in found.items()})
