"""What a step of ProdLDA costs, over PyTorch by hand: ``python benchmarks/topic_step.py``.

``OMP_NUM_THREADS=1 python benchmarks/topic_step.py`` writes ``results/prodlda_step.json``. By hand
means: the same network and the same loss as plain functions on tensors, the KL in closed form.
"""

import argparse
import copy
import time
from functools import partial

import torch
from paired import interleaved, ratios
from results import Result, by_threads
from torch import Tensor, nn
from torch.nn.functional import dropout, softplus

import pyro_vae as pv
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss

WORDS, TOPICS, BATCH, IN_BLOCK = 2000, 50, 200, 5


class ByHand(nn.Module):
    """The loss in plain PyTorch."""

    def __init__(self, drop: float = 0.6) -> None:
        super().__init__()
        self.drop, self.variance = drop, 1 - 1 / TOPICS
        self.first, self.second = nn.Linear(WORDS, 100), nn.Linear(100, 100)
        self.heads, self.words = nn.Linear(100, 2 * TOPICS), nn.Linear(TOPICS, WORDS, bias=False)
        self.norm_heads, self.norm_words = (
            nn.BatchNorm1d(size, affine=False) for size in (2 * TOPICS, WORDS)
        )
        self.shift_heads = nn.Parameter(torch.zeros(2 * TOPICS))
        self.shift_words = nn.Parameter(torch.zeros(WORDS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative bound per document."""
        h = softplus(self.second(softplus(self.first(x.log1p()))))
        read = self.norm_heads(self.heads(dropout(h, self.drop))) + self.shift_heads
        loc, log_variance = read.chunk(2, -1)
        z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
        mixed = self.words(dropout(z.softmax(-1), self.drop))
        log_p = (self.norm_words(mixed) + self.shift_words).log_softmax(-1)
        ratio = (log_variance.exp() + loc.square()) / self.variance
        prior = torch.tensor(self.variance).log()
        kl = 0.5 * (ratio - 1 + prior - log_variance).sum(-1)
        return (kl - (x * log_p).sum(-1)).mean()


def main() -> None:
    """Measure and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=21)
    args = parser.parse_args()
    begun = time.perf_counter()
    torch.manual_seed(0)
    x = torch.poisson(torch.full((BATCH, WORDS), 0.05))
    by_hand, model = ByHand(), pv.models.ProdLDA(WORDS, TOPICS)
    programs = [pv.Program.of(each) for each in (model, copy.deepcopy(model))]
    for program in programs:
        program.read(x)
        program.train()
    objective = pv.AnalyticELBO()
    graphs = {
        name: CompiledLoss(objective.per_datum, program, mode=mode)
        for (name, mode), program in zip(
            (("traced", "trace"), ("compiled", True)), programs, strict=True
        )
    }
    modules = {"by hand": by_hand, **dict(zip(graphs, programs, strict=True))}
    adams = {
        name: torch.optim.Adam(module.parameters(), lr=2e-3, betas=(0.99, 0.999), fused=True)
        for name, module in modules.items()
    }

    def hand_block() -> None:
        for _ in range(IN_BLOCK):
            adams["by hand"].zero_grad()
            by_hand(x).backward()
            adams["by hand"].step()

    def our_block(which: str) -> None:
        for _ in range(IN_BLOCK):
            prepared = graphs[which].prepare(x)  # as `pv.fit` takes its steps
            assert prepared is not None
            prepared.backward()
            adams[which].step()

    works = {"by hand": hand_block, **{name: partial(our_block, name) for name in graphs}}
    interleaved(works, 1)  # first runs pay for caches
    times = interleaved(works, args.blocks)
    reasons = [graph.reason for graph in graphs.values() if graph.reason is not None]
    if reasons:
        raise SystemExit(f"the program runs eagerly: {reasons[0]}")
    found = {name: ratios(times[name], times["by hand"]) for name in graphs}
    result = Result(
        name=by_threads("prodlda_step"),
        value=found["compiled"]["cpu"].median,
        stderr=found["compiled"]["cpu"].stderr,
        unit="time of a compiled ProdLDA step over hand-written PyTorch",
        estimator=f"median of {args.blocks} paired ratios of blocks of {IN_BLOCK} steps, CPU time",
        published="",
        target="<= 0.8",
        data=f"made-up counts of {WORDS} words, {TOPICS} topics, batch {BATCH}",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - begun,
        device=f"cpu, {torch.get_num_threads()} thread",
        details={
            f"{name} over by hand": {clock: vars(each) for clock, each in clocks.items()}
            for name, clocks in found.items()
        },
    )
    print(result.write())
    for name, clocks in found.items():
        print(f"{name} {clocks['cpu'].median:.3f}")


if __name__ == "__main__":
    main()
