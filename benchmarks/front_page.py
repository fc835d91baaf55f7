"""What the README shows of the results and of the docstrings: a few lines, and a chart of speed.

``python benchmarks/front_page.py`` draws the chart, ``benchmarks/results/speed.png``.
"""

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results"
CHART = FOLDER / "speed.png"
STOCK = "pyro.infer.SVI"

# Each with the figures that it states, by name.
REASONS = {
    "Speed": (
        "a compiled training step takes {zoo_steps:.2f} of the time of `SVI.step` "
        "(geometric mean over the {programs} models timed beside it).",
        ("zoo_steps",),
    ),
    "Likelihood": (
        "`log_likelihood` and `ais` estimate log p(x) with its error; the ELBO of a VAE on "
        "Fashion-MNIST is {gaps_fashion:.1f} nats lower.",
        ("gaps_fashion",),
    ),
    "Collapse": (
        "`diagnose` names a code that is not used and the cures; on MNIST with an autoregressive "
        "decoder a cure lowers the negative log-likelihood from {collapse_made_plain:.1f} to "
        "{collapse_made_skip:.1f} nats.",
        ("collapse_made_plain", "collapse_made_skip"),
    ),
    "Posteriors": (
        "`refine` runs HMC chains for all data side by side: {refine_over_pyro_hmc:.0f} times the "
        "effective draws per CPU second of `pyro.infer.HMC` (10,000 posteriors).",
        ("refine_over_pyro_hmc",),
    ),
}
# As the figure is called on the front page; each has a published one measured the same way.
HEADLINES = {
    "vae_mnist_static": "VAE, static MNIST: negative log-likelihood, nats",
    "iwae5_mnist_static": "the same trained by `IWAE(5)`",
    "ladder_mnist": "`LadderVAE`, dynamic MNIST: negative log-likelihood, nats",
    "hmc_gain_fashion_threshold": "gain of `HMCRefined` over the ELBO, Fashion-MNIST, nats",
    "nvdm_20news": "`NVDM`, 20 Newsgroups: perplexity per document",
}
MODELS = {
    "images and vectors": (
        *("VAE", "HierarchicalVAE", "LadderVAE", "TopDownVAE", "BayesianVAE", "VQVAE", "SBN"),
        *("DEF",),
    ),
    "labels, tables, modalities": ("ConditionalVAE", "M2", "TableVAE", "MultimodalVAE"),
    "documents": ("LDA", "NVDM", "GSM", "ProdLDA", "ETM"),
    "sequences, sentences": ("DMM", "VRNN", "SentenceVAE", "SentenceLM"),
    "baselines": ("LinearVAE", "Autoencoder"),
}
OBJECTIVES = {
    "bounds": ("ELBO", "AnalyticELBO", "IWAE", "MIWAE", "Renyi", "STL", "DReG"),
    "against collapse": ("FreeBits", "TargetKL", "Lagging"),
    "discrete latents": ("NVIL", "RLOO", "VIMCO", "DisARM", "ReweightedWakeSleep", "VQ"),
    "labels; HMC": ("SemiSupervised", "HMCRefined"),
    "with a critic": ("AVB", "AAE", "WAE", "VAEGAN", "LatentAutoencoder"),
}


def reasons(results: dict[str, dict[str, Any]]) -> str:
    """Return the bullets of what is gained over a loop of stock SVI."""
    values = {name: row["value"] for name, row in results.items()}
    rows = results["zoo_steps"]["details"]["rows"].values()
    values["programs"] = sum("Pyro SVI(Trace_ELBO)" in row["ours_over"] for row in rows)
    lines = []
    for title, (text, names) in REASONS.items():
        links = ", ".join(f"[{n}](benchmarks/results/{n}.json)" for n in names)
        lines.append(f"- **{title}**: {text.format(**values)} ({links})")
    return "\n".join(lines)


def papers(rooms: dict[str, tuple[str, ...]], folder: str) -> str:
    """Return the list of classes, each with the paper that its docstring names first."""
    known = _references(ROOT / "pyro_vae" / folder)
    told = {room: [f"`{name}` ({known[name]})" for name in names] for room, names in rooms.items()}
    return "\n".join(f"- {room}: {', '.join(classes)}" for room, classes in told.items())


def _references(folder: Path) -> dict[str, str]:
    """Return authors and year by class, read without an import."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
            told = " ".join((text or "").partition("References:")[2].split())
            paper = re.search(r"\(([^()]+?),? (\d{4})\)", told)
            if isinstance(node, ast.ClassDef) and paper:
                found[node.name] = f"{paper[1].replace(' and ', ' & ')} {paper[2]}"
    return found


# What a program of the chart is, in words; and whose step it is, by the names of the results.
PROGRAMS = {
    "vae_64_32_8": "VAE 64-32-8",
    "layered_5": "5 layers, 64 inputs",
    "vae_784_400_20": "VAE 784-400-20",
    "vae_784_400_20_b1024": "the same, batch 1024",
    "iwae_k50": "IWAE, K = 50",
    "conv_28": "convolutional, 28 x 28",
}
STEPS = {
    "Pyro SVI": ("Pyro SVI(Trace_ELBO)", "Pyro SVI(RenyiELBO, vectorised)"),
    "PyTorch by hand, torch.compile": ("hand-written, torch.compile",),
    "NumPyro, the better of jit and scan": ("NumPyro, jit", "NumPyro, lax.scan"),
    "pyro_vae": ("pyro_vae, compile=True",),
}


def charted() -> dict[str, dict[str, float]]:
    """Return the times of the chart over hand-written eager PyTorch, by program."""
    found = {}
    for name, words in PROGRAMS.items():
        ratios = json.loads((FOLDER / f"speed_{name}.json").read_text())["details"]["ratios"]
        found[words] = {
            whose: min(ratios[key]["wall"]["median"] for key in keys if key in ratios)
            for whose, keys in STEPS.items()
        }
    return found


def fingerprint() -> str:
    """Return what the chart's file says of the figures that it was drawn from."""
    return hashlib.sha256(json.dumps(charted()).encode()).hexdigest()[:16]


def draw() -> Any:
    """Return the chart: a row per program, a dot per implementation, on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figures = charted()
    figure = Figure(figsize=(7.6, 3.3), dpi=110, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    looks = zip(STEPS, ("#CC6677", "#8a8a8a", "#DDAA33", "#332288"), "sD^o", strict=True)
    for whose, colour, marker in looks:
        times = [row[whose] for row in figures.values()]
        ours = whose == "pyro_vae"  # larger, and behind what it hides otherwise
        look = {"ms": 10, "zorder": 2} if ours else {"ms": 6.5, "zorder": 3}
        axes.plot(times, range(len(times)), marker, color=colour, ls="", label=whose, **look)
    axes.axvline(1.0, color="#222222", lw=0.9, ls=":")
    axes.set_yticks(range(len(figures)), list(figures))
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = (0.125, 0.25, 0.5, 1, 2, 4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="both", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("time of a training step; 1 is eager PyTorch by hand, left is faster")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    draw().savefig(CHART, metadata={"Description": fingerprint()})
