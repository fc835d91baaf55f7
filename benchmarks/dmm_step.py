"""What a step of a deep Markov model costs, over PyTorch by hand and over stock SVI.

``OMP_NUM_THREADS=1 python benchmarks/dmm_step.py --steps 60`` writes ``results/dmm_step_t60.json``.
By hand means: torch's own GRU, a loop over the states alone, prior and observations of all steps at
once. Stock SVI has a site for each step, as in Pyro's own example.
"""

import argparse
import copy
import time
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from paired import interleaved, ratios
from results import Result, by_threads
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_vae as pv
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss

BATCH, SIZES = 20, {"latent_dim": 24, "hidden": (64, 64), "transition": 64, "recurrent": 96}
IN_BLOCK = 2


class ByHand(nn.Module):
    """The loss in plain PyTorch, on the networks of a program."""

    def __init__(self, dmm: pv.models.DMM) -> None:
        super().__init__()
        self.dmm = dmm
        cell = dmm.readers[0].cell
        self.gru = nn.GRU(cell.input_size, cell.hidden_size, batch_first=True)
        self.gru.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative bound per sequence, all of full length."""
        dmm = self.dmm
        start = dmm.readers[0].start.expand(1, len(x), -1).contiguous()
        read = self.gru(x.flip(1), start)[0].flip(1)
        z, path, log_q = dmm.guess.expand(len(x), -1), [], 0.0
        for t in range(x.shape[1]):
            q = dmm.posterior(z, read[:, t]).base_dist
            noise = torch.randn_like(q.loc)
            z = q.loc + q.scale * noise
            log_q = log_q - (0.5 * noise.square() + q.scale.log()).sum(-1)
            path.append(z)
        states = torch.stack(path, 1)
        before = torch.cat([dmm.start.expand(len(x), 1, -1), states[:, :-1]], 1)
        p = dmm.transition(before).base_dist
        log_p = -(0.5 * ((states - p.loc) / p.scale).square() + p.scale.log()).sum((-1, -2))
        logits = dmm.decoder.net(states)
        log_x = -binary_cross_entropy_with_logits(logits, x, reduction="none").sum((-1, -2))
        return -(log_x + log_p - log_q).mean()


class PerStep(nn.Module):
    """The same program with a site for each step."""

    def __init__(self, dmm: pv.models.DMM) -> None:
        super().__init__()
        self.dmm = dmm

    def model(self, x: Tensor) -> None:
        """Draw and observe step by step."""
        pyro.module("dmm", self.dmm)
        z = self.dmm.start.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", self.dmm.transition(z))
                seen = dist.Bernoulli(logits=self.dmm.decoder.net(z)).to_event(1)
                pyro.sample(f"x_{t}", seen, obs=x[:, t])

    def guide(self, x: Tensor) -> None:
        """Draw the states step by step."""
        pyro.module("dmm", self.dmm)
        read = self.dmm.readers[0](x)
        z = self.dmm.guess.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", self.dmm.posterior(z, read[:, t]))


def main() -> None:
    """Measure and write the ratios for one number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="T")
    parser.add_argument("--blocks", type=int, default=9)
    args = parser.parse_args()
    begun = time.perf_counter()
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((BATCH, args.steps, 88), 0.05))
    dmm = pv.models.DMM(88, **SIZES)
    by_hand, per_step = ByHand(copy.deepcopy(dmm)), PerStep(copy.deepcopy(dmm))
    program = pv.Program.of(dmm)
    program.read(x)
    compiled = CompiledLoss(pv.ELBO().per_datum, program, mode="trace")
    traced = time.process_time()
    compiled(x).backward()
    traced = time.process_time() - traced
    other = copy.deepcopy(dmm)
    adams = [torch.optim.Adam(m.parameters(), lr=1e-4, fused=True) for m in (by_hand, dmm, other)]
    through_inductor = pv.Program.of(other)
    through_inductor.read(x)
    graphs = [compiled, CompiledLoss(pv.ELBO().per_datum, through_inductor, mode=True)]
    svi = pyro.infer.SVI(
        per_step.model, per_step.guide, pyro.optim.Adam({"lr": 1e-4}), pyro.infer.Trace_ELBO()
    )

    def hand_block() -> None:
        for _ in range(IN_BLOCK):
            adams[0].zero_grad()
            by_hand(x).backward()
            adams[0].step()

    def our_block(which: int) -> None:
        for _ in range(IN_BLOCK):
            prepared = graphs[which].prepare(x)  # as `pv.fit` takes its steps
            assert prepared is not None
            prepared.backward()
            adams[1 + which].step()

    def stock_block() -> None:
        for _ in range(IN_BLOCK):
            svi.step(x)

    works = {
        "traced": partial(our_block, 0),
        "compiled": partial(our_block, 1),
        "by hand": hand_block,
        "stock": stock_block,
    }
    interleaved(works, 1)  # first runs pay for caches
    times = interleaved(works, args.blocks)
    if any(graph.reason is not None for graph in graphs):
        raise SystemExit(f"the program runs eagerly: {graphs[0].reason or graphs[1].reason}")
    found = {
        f"{ours} over {base}": ratios(times[ours], times[base])
        for ours in ("traced", "compiled")
        for base in ("by hand", "stock")
    }
    hand = found["traced over by hand"]
    result = Result(
        name=by_threads(f"dmm_step_t{args.steps}"),
        value=hand["cpu"].median,
        stderr=hand["cpu"].stderr,
        unit=f"time of a traced DMM step, T = {args.steps}, over hand-written PyTorch (over stock "
        f"SVI {found['traced over stock']['cpu'].median:.3f}, and of a compiled one "
        f"{found['compiled over stock']['cpu'].median:.3f})",
        estimator=f"median of {args.blocks} paired ratios of blocks of {IN_BLOCK} steps, CPU time",
        published="",
        target="<= 1.0; compiled <= 0.2 of stock SVI with a site per step",
        data=f"made-up piano rolls, {SIZES}, batch {BATCH}",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - begun,
        device=f"cpu, {torch.get_num_threads()} thread",
        details={
            **{
                name: {clock: vars(each) for clock, each in clocks.items()}
                for name, clocks in found.items()
            },
            "tracing_cpu_seconds": traced,
        },
    )
    print(result.write())
    for name, clocks in found.items():
        print(f"T = {args.steps}: {name} {clocks['cpu'].median:.3f}")
    print(f"tracing {traced:.2f} CPU s")


if __name__ == "__main__":
    main()
