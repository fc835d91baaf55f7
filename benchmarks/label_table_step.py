"""Steps of M2 and of a table beside the same updates in hand-written PyTorch, block by block.

``OMP_NUM_THREADS=1 python benchmarks/label_table_step.py`` writes its median ratios of times, the
label of M2 summed out and a table of six kinds of columns, to ``results/label_table_step.json``.
"""

import itertools
import math
from collections.abc import Callable

import torch
from beside_hand import slowest_beside_hand
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
    softplus,
)

import pyro_vae as pv
from pyro_vae.conditionals import Column
from pyro_vae.program.handlers import validation
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper

LABELS, LATENT, LABELLED, BATCH = 10, 50, 20, 100
ROWS, PARTICLES = 128, 5
STEPS, BLOCKS, WARM = 10, 21, 40
TABLE = [
    *(Column(f"real {d}", "real") for d in range(4)),
    *(Column(f"positive {d}", "positive") for d in range(2)),
    *(Column(f"count {d}", "count", center=1.0) for d in range(2)),
    *(Column(f"name {d}", "categorical", categories=tuple(range(5))) for d in range(3)),
    Column("rank", "ordinal", categories=(0, 1, 2, 3)),
]


def ours(program: nn.Module, objective: object, data: object) -> Callable[[], object]:
    """Return a block of steps of this library."""
    wrapped = pv.Program.of(program)
    wrapped.read(data)
    wrapped.train()
    rows = len(data[0]) if isinstance(data, tuple) else len(data)  # type: ignore[arg-type]
    stepper = Stepper(
        wrapped, objective, adam(1e-3), clip_norm=None, size=rows, compile="trace", steps=10_000
    )

    def block() -> None:
        with wrapped.running(), validation(False):
            for _ in range(STEPS):
                stepper.step(data, None)

    return block


def blocks_of(module: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], object]:
    """Return a block of the steps that a user of PyTorch writes."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)

    def block() -> None:
        for _ in range(STEPS):
            loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert torch.isfinite(loss)  # as this library does

    return block


def mlp(*sizes: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return affine maps with activations between them."""
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(sizes):
        layers += [nn.Linear(one, other), activation()]
    return nn.Sequential(*layers[:-1])


def m2_by_hand(x: Tensor, label: Tensor) -> Callable[[], object]:
    """Labelled rows at their label, the others at each of ten, labels beside the data."""
    torch.manual_seed(0)
    width = 784 + LABELS
    parts = nn.ModuleDict(
        {
            "classify": mlp(784, 500, LABELS, activation=nn.Softplus),
            "encode": mlp(width, 500, 2 * LATENT, activation=nn.Softplus),
            "decode": mlp(LATENT + LABELS, 500, 784, activation=nn.Softplus),
        }
    )

    def bound(rows: Tensor, hot: Tensor) -> Tensor:
        loc, log_scale = parts["encode"](torch.cat([rows, hot], -1)).chunk(2, -1)
        log_scale = log_scale.clamp(-7, 7)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        logits = parts["decode"](torch.cat([z, hot], -1))
        misfit = binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(-1)
        log_q = -log_scale - 0.5 * ((z - loc) / log_scale.exp()).square()
        return -misfit - (0.5 * z.square() + log_q).sum(-1) - math.log(LABELS)

    known = label >= 0
    few, many, y = x[known], x[~known], label[known]
    each = torch.eye(LABELS)[:, None].expand(LABELS, len(many), LABELS)

    def loss_of() -> Tensor:
        logits = parts["classify"](x)
        log_q = logits[~known].log_softmax(-1).T
        free = bound(many.expand(LABELS, *many.shape), each) - log_q
        total = bound(few, one_hot(y, LABELS).float()).sum() + (log_q.exp() * free).sum()
        return -total / len(x) + cross_entropy(logits[known], y)

    return blocks_of(parts, loss_of)


def table_by_hand(x: Tensor) -> Callable[[], object]:
    """The importance-weighted bound of the observed cells, each kind of column in one formula."""
    torch.manual_seed(0)
    seen = ~x.isnan()
    encode = mlp(8 + 19 + 12, 128, 16, activation=nn.ReLU)
    decode = mlp(8, 128, 8 + 4 + 4 + 15 + 1, activation=nn.ReLU)
    steps = nn.Parameter(torch.zeros(2))
    module = nn.ModuleList([encode, decode, nn.ParameterList([steps])])

    def features() -> Tensor:
        known = x.nan_to_num()
        hot = [one_hot(known[:, 8:11].long(), 5).flatten(1), one_hot(known[:, 11].long(), 4)]
        numbers = torch.cat(
            [known[:, :4], x[:, 4:6].log().nan_to_num(), (x[:, 6:8].log1p() - 1).nan_to_num()], -1
        )
        there = [seen[:, 8:11].repeat_interleave(5, -1), seen[:, 11:].expand(-1, 4)]
        return torch.cat([numbers, *(h * t for h, t in zip(hot, there, strict=True)), seen], -1)

    def cells(out: Tensor) -> Tensor:
        real, positive, count, name, rank = out.split([8, 4, 4, 15, 1], -1)
        known = torch.where(seen, x, torch.ones_like(x))
        half = 0.5 * math.log(2 * math.pi)
        loc, log_scale = real.unflatten(-1, (4, 2)).unbind(-1)
        scale = 0.01 + log_scale.clamp(-7, 7).exp()
        normal = -0.5 * ((known[:, :4] - loc) / scale).square() - scale.log() - half
        loc, spread = positive.unflatten(-1, (2, 2)).unbind(-1)
        scale, logs = 0.01 + 3 * torch.sigmoid(spread - math.log(2)), known[:, 4:6].log()
        lognormal = -0.5 * ((logs - loc) / scale).square() - scale.log() - half - logs
        log_rate, log_size = count.unflatten(-1, (2, 2)).unbind(-1)
        log_rate, log_size = log_rate.clamp(-7, 7), log_size.clamp(-7, 7)
        n, size, logit = known[:, 6:8], log_size.exp(), 1 + log_rate - log_size
        counted = torch.lgamma(n + size) - torch.lgamma(1 + n) - torch.lgamma(size)
        counted = counted - size * softplus(logit) - n * softplus(-logit)
        log_p = name.unflatten(-1, (3, 5)).log_softmax(-1)
        picked = known[:, 8:11].long().expand(*log_p.shape[:-1])
        named = log_p.gather(-1, picked.unsqueeze(-1)).squeeze(-1)
        cuts = nn.functional.pad(softplus(steps + 0.5).cumsum(-1), (1, 0))
        below = torch.sigmoid(cuts - cuts.mean() - rank)
        mass = torch.diff(nn.functional.pad(nn.functional.pad(below, (1, 0)), (0, 1), value=1.0))
        place = known[:, 11:].long().expand(*mass.shape[:-1], 1)
        ranked = mass.gather(-1, place).clamp(min=1e-7).log()
        return torch.cat([normal, lognormal, counted, named, ranked], -1)

    def loss_of() -> Tensor:
        loc, log_scale = encode(features()).chunk(2, -1)
        log_scale, noise = log_scale.clamp(-7, 7), torch.randn(PARTICLES, *loc.shape)
        z = loc + log_scale.exp() * noise
        log_w = torch.where(seen, cells(decode(z)), 0.0).sum(-1)
        log_w = log_w + (log_scale + 0.5 * noise.square() - 0.5 * z.square()).sum(-1)
        return math.log(PARTICLES) - log_w.logsumexp(0).mean()

    return blocks_of(module, loss_of)


def main() -> None:
    """Measure, and write the figure."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(BATCH, 784, generator=generator) < 0.3).float()
    label = torch.where(torch.arange(BATCH) < LABELLED, torch.arange(BATCH) % LABELS, -1)
    table = torch.rand(ROWS, len(TABLE), generator=generator)
    table[:, 6:] = (4 * table[:, 6:]).floor()
    table = table.masked_fill(torch.rand(table.shape, generator=generator) < 0.2, torch.nan)
    torch.manual_seed(0)
    m2 = pv.models.M2(784, LABELS, LATENT, (500,))
    rows = pv.models.TableVAE(TABLE, 8, (128,))
    works = {
        "M2, by hand": m2_by_hand(x, label),
        "M2": ours(m2, pv.SemiSupervised(), (x, label)),
        "TableVAE, by hand": table_by_hand(table),
        "TableVAE": ours(rows, pv.MIWAE(PARTICLES), table),
    }
    slowest_beside_hand(
        "label_table_step",
        works,
        steps=STEPS,
        blocks=BLOCKS,
        warm=WARM,
        unit="times the hand-written step, the slower of M2 (label summed out) and TableVAE",
        data=f"none: random bits, B = {BATCH}, {LABELLED} labelled, 784-500-{LATENT}, {LABELS} "
        f"labels; random cells of {len(TABLE)} columns, B = {ROWS}, K = {PARTICLES}",
    )


if __name__ == "__main__":
    main()
