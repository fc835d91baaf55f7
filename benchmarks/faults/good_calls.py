"""One good call of every public function: what a bad argument is put into.

``GOOD`` has a value for an argument's name; ``OF`` those that one function needs otherwise. What
is made takes a `Room`, which builds each shared object once.
"""

import functools
import gzip
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv


def common_mean(x: Tensor) -> None:
    """Draw a global mean and observe data around it."""
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(6), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def common_mean_guide(x: Tensor) -> None:
    """Draw the global mean around a parameter."""
    loc = pyro.param("loc", x.new_zeros(6))
    pyro.sample("mean", dist.Normal(loc, 0.5).to_event(1))


class Room:
    """Tiny programs, data and results, each made once."""

    def __init__(self) -> None:
        pyro.set_rng_seed(0)
        self.folder = Path(tempfile.mkdtemp(prefix="bad-calls-"))
        self.x = torch.bernoulli(torch.full((8, 6), 0.5))
        self.short = pv.AIS(num_temperatures=3, chains=2, num_leapfrog=1, pilot=4)
        self.hmc = pv.HMC(num_draws=4, warmup=4, chains=2, num_leapfrog=2)
        self.local = pv.Local(num_steps=2, num_particles=2)

    @functools.cached_property
    def vae(self) -> Any:
        return pv.models.VAE(6, 2, (4,))

    @functools.cached_property
    def judge(self) -> Any:
        return pv.nn.ConvCritic((1, 2, 3), (2,))

    @functools.cached_property
    def vqvae(self) -> Any:
        return pv.models.VQVAE(6, 4, 2, (4,), network="mlp", positions=2, prior="uniform")

    @functools.cached_property
    def holes(self) -> Any:
        return pv.models.VAE(6, 2, (4,), missing="nan")

    @functools.cached_property
    def m2(self) -> Any:
        return pv.models.M2(6, 3, 2, (4,))

    @functools.cached_property
    def gsm(self) -> Any:
        return pv.models.GSM(6, 2, (4,))

    @functools.cached_property
    def language(self) -> Any:
        return pv.models.SentenceLM(6, embedding=4, hidden=4)

    @functools.cached_property
    def linear(self) -> Any:
        return pv.models.LinearVAE(6, 2)

    @functools.cached_property
    def globals_(self) -> Any:
        return pv.Program(common_mean, common_mean_guide)

    @functools.cached_property
    def saved(self) -> Path:
        return pv.save(self.vae, self.folder / "saved")

    @functools.cached_property
    def local_guide(self) -> Any:
        return pv.LocalGuide(self.vae, self.x)

    @functools.cached_property
    def figure(self) -> Any:
        return pv.plots.curves(HISTORY)

    @functools.cached_property
    def arrays(self) -> Path:
        path = self.folder / "arrays.npz"
        np.savez(path, x=np.zeros((2, 3), np.uint8))
        return path

    @functools.cached_property
    def idx(self) -> Path:
        path = self.folder / "idx.gz"
        path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 6])))
        return path

    @functools.cached_property
    def digits(self) -> Any:
        return pv.data.load("digits")


def layers(outputs: int) -> nn.Module:
    return nn.Linear(2, outputs)


def coins(seen: Tensor) -> Tensor:
    return torch.zeros(len(seen), seen.shape[1] + 1, 2)


def walk(z: Tensor) -> Any:
    return dist.Normal(z, 1.0).to_event(1)


COLUMNS = [pv.conditionals.Column(name, "real") for name in "abcdef"]
AXIS = np.linspace(-4, 4, 41)
HISTORY = {name: np.arange(1.0, 4.0) for name in ("epoch", "loss", "elbo", "kl[z]", "active[z]")}


def components() -> Any:
    return dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)


GOOD: dict[str, Callable[[Room], Any]] = {
    "program": lambda room: room.vae,
    "data": lambda room: room.x,
    "first": lambda room: room.x,
    "second": lambda room: room.x,
    "x": lambda room: room.x,
    "n": lambda room: 2,
    "data_dim": lambda room: 6,
    "data_shape": lambda room: (6,),
    "latent_dim": lambda room: 2,
    "latent_dims": lambda room: (3, 2),
    "in_shape": lambda room: 6,
    "out_shape": lambda room: 2,
    "net": lambda room: layers(8),
    "name": lambda room: "relu",
    "mean": lambda room: torch.full((6,), 0.5),
    "bias": lambda room: torch.zeros(2),
    "value": lambda room: torch.ones(2),
    "vectors": lambda room: torch.eye(2),
    "logits": lambda room: torch.zeros(3, 2),
    "folder": lambda room: room.saved,
    "spec": lambda room: pv.conditionals.Bernoulli,
    "loc": lambda room: torch.zeros(3, 2),
    "scale": lambda room: torch.ones(3, 2),
    "steps": lambda room: 3,
    "title": lambda room: "title",
    "batch": lambda room: room.x,
    "num_classes": lambda room: 3,
    "images": lambda room: torch.zeros(4, 8, 8),
    "model": lambda room: common_mean,
    "guide": lambda room: common_mean_guide,
    "num_features": lambda room: 3,
    "nats": lambda room: 0.5,
    "progress": lambda room: False,
    "words": lambda room: 6,
    "labels": lambda room: torch.zeros(8).long(),
    "critic": lambda room: pv.nn.Critic(2),
    "features": lambda room: 4,
}

_CONV: Mapping[str, Callable[[Room], Any]] = {
    "in_shape": lambda room: (1, 8, 8),
    "out_shape": lambda room: 4,
    "channels": lambda room: (2, 3),
}
_LADDER: Mapping[str, Callable[[Room], Any]] = {
    "hidden": lambda room: (4, 3),
    "depth": lambda room: 1,
    "latent_dims": lambda room: (3, 2),
}
_POSTERIOR: Mapping[str, Callable[[Room], Any]] = {
    "hidden": lambda room: (4,),
    "context_dim": lambda room: 3,
}
OF: dict[str, Mapping[str, Callable[[Room], Any]]] = {
    "Program": {"guide": lambda room: common_mean_guide},
    "Program.load_state_dict": {
        "state_dict": lambda room: pv.Program.of(room.vae).state_dict(),
        "strict": lambda room: True,
        "assign": lambda room: False,
    },
    "Renyi": {"alpha": lambda room: 0.5},
    "CompiledLoss": {
        "loss": lambda room: pv.ELBO().per_datum,
        "program": lambda room: pv.Program.of(room.vae),
    },
    "VAEGAN": {"critic": lambda room: room.judge, "features": lambda room: nn.Identity()},
    "LatentAutoencoder": {
        "critic": lambda room: room.judge,
        "features": lambda room: nn.Identity(),
    },
    "aggregated_posterior": {"num_steps": lambda room: 2},
    "feature_distances": {"features": lambda room: nn.Identity()},
    "Update": {
        "loss": lambda room: pv.ELBO().per_datum,
        "parameters": lambda room: tuple(room.vae.parameters()),
    },
    "LocalGuide": {"model": lambda room: room.vae, "scale": lambda room: 1.0},
    "AIS.schedule": {"num": lambda room: 3},
    "Amortised.log_prob": {"values": lambda room: {"z": torch.zeros(1, 8, 2)}},
    "LocalPosterior.log_prob": {"values": lambda room: {"z": torch.zeros(1, 8, 2)}},
    "ais": {"settings": lambda room: room.short},
    "bdmc": {"settings": lambda room: room.short, "n": lambda room: 4},
    "code_usage": {"program": lambda room: room.vqvae},
    "diagnose": {"probes": lambda room: 5, "rows": lambda room: 8},
    "fit": {
        "epochs": lambda room: 1,
        "batch_size": lambda room: 8,
        "compile": lambda room: False,
        "device": lambda room: "cpu",
    },
    "fitted_log_likelihood": {
        "num_particles": lambda room: 8,
        "warmup": lambda room: 2,
        "num_draws": lambda room: 4,
        "num_leapfrog": lambda room: 1,
    },
    "gaps": {
        "local": lambda room: room.local,
        "annealed": lambda room: room.short,
        "num_particles": lambda room: 4,
    },
    "infer": {"how": lambda room: "local", "settings": lambda room: room.local},
    "log_likelihood": {"num_particles": lambda room: 4},
    "refine": {"settings": lambda room: room.hmc, "compile": lambda room: False},
    "reconstruct": {"mean": lambda room: True},
    "generate": {"mean": lambda room: True},
    "save": {"folder": lambda room: room.folder / "written"},
    "conditionals.AR1": {
        "correlation": lambda room: torch.tensor(0.5),
        "units": lambda room: 2,
    },
    "conditionals.MADE": {"net": lambda room: pv.nn.MLP(2, 6, ())},
    "conditionals.AR1Prior": {"latent_dim": lambda room: 6},
    "conditionals.VampPrior": {"num_components": lambda room: 3},
    "conditionals.FlowPrior": {"hidden": lambda room: (4,)},
    "conditionals.IsotropicGaussian": {"scale": lambda room: 1.0},
    "conditionals.FixedScaleGaussian": {"scale": lambda room: 0.5},
    "conditionals.FixedScaleGaussian.outputs": {"scale": lambda room: 0.5},
    "conditionals.IsotropicGaussian.width": {"scale": lambda room: 1.0},
    "conditionals.IsotropicGaussian.output_bias": {"scale": lambda room: 1.0},
    "conditionals.InverseAutoregressiveFlow": _POSTERIOR,
    "conditionals.SplineFlow": _POSTERIOR,
    "conditionals.AR1.floor": {"correlation": lambda room: 0.5},
    "conditionals.AR1.log_prob": {"value": lambda room: torch.zeros(3, 2)},
    "conditionals.Mixture": {
        "logits": lambda room: torch.zeros(3),
        "components": lambda room: components(),
    },
    "conditionals.VampPrior.start_at": {"rows": lambda room: torch.rand(3, 6)},
    "conditionals.bounded": {"log_scale": lambda room: torch.zeros(2)},
    "conditionals.widen": {"shape": lambda room: (6,), "width": lambda room: 2},
    "conditionals.Combiner": {"hidden": lambda room: 4},
    "conditionals.GatedTransition": {"hidden": lambda room: 4},
    "data.load": {"name": lambda room: "digits"},
    "data.bucketed": {
        "data": lambda room: {"x": torch.zeros(4, 3, 2), "lengths": torch.tensor([3, 1, 2, 3])},
        "batch_size": lambda room: 2,
    },
    "data.mixed": {"batch_size": lambda room: 4, "share": lambda room: 0.5},
    "data.pad": {"sequences": lambda room: [torch.zeros(3, 2), torch.zeros(1, 2)]},
    "data.Vocabulary": {"words": lambda room: pv.data.Vocabulary.of(["a"], least=1)},
    "data.Vocabulary.of": {"lines": lambda room: ["a", "a cat"], "least": lambda room: 1},
    "data.Vocabulary.numbers": {"lines": lambda room: ["a", "a cat"]},
    "data.Vocabulary.text": {"x": lambda room: torch.tensor([4, 3])},
    "data.read_idx": {"path": lambda room: room.idx},
    "data.read_npz": {
        "path": lambda room: room.arrays,
        "expected": lambda room: {"x": (np.uint8, (3,))},
    },
    "distributions.AutoregressiveBernoulli": {"network": lambda room: nn.Identity()},
    "distributions.AutoregressiveBits": {"weight": lambda room: torch.zeros(2, 2)},
    "distributions.BernoulliArray": {
        "base_distribution": lambda room: dist.Bernoulli(logits=torch.zeros(3, 2)),
        "reinterpreted_batch_ndims": lambda room: 1,
    },
    "distributions.Chain": {
        "transition": lambda room: walk,
        "initial": lambda room: torch.zeros(2),
    },
    "distributions.Chain.log_prob": {"value": lambda room: torch.zeros(3, 2)},
    "distributions.Chain.step_log_prob": {"value": lambda room: torch.zeros(3, 2)},
    "distributions.RecurrentChain": {
        "state": lambda room: walk,
        "cell": lambda room: lambda h, z: h + z,
        "initial": lambda room: torch.zeros(2),
    },
    "distributions.RecurrentChain.memories": {"value": lambda room: torch.zeros(3, 2)},
    "distributions.RecurrentChain.log_prob": {"value": lambda room: torch.zeros(3, 2)},
    "distributions.RecurrentChain.step_log_prob": {"value": lambda room: torch.zeros(3, 2)},
    "distributions.Implicit": {
        "noise": lambda room: dist.Normal(torch.zeros(3, 2), 1.0).to_event(1),
        "function": lambda room: torch.tanh,
        "event_shape": lambda room: (2,),
    },
    "distributions.Padded": {
        "steps": lambda room: dist.Normal(torch.zeros(4, 3), 1.0),
        "lengths": lambda room: torch.tensor([3, 1, 0, 2]),
    },
    "distributions.Padded.log_prob": {"value": lambda room: torch.zeros(4, 3)},
    "distributions.Sentence": {"net": lambda room: room.language.decoder},
    "distributions.Sentence.log_prob": {"value": lambda room: torch.tensor([4, 5, 3])},
    "distributions.CodeSequence": {"net": lambda room: coins, "length": lambda room: 3},
    "distributions.CodeSequence.log_prob": {"value": lambda room: torch.ones(3).long()},
    "distributions.GivenLabel": {"label": lambda room: torch.tensor([2, 0])},
    "distributions.GivenLabel.log_prob": {"value": lambda room: torch.tensor([2, -1])},
    "distributions.FlatSequence": {
        "sequence": lambda room: pv.distributions.AR1(torch.tensor(0.5), 3, 2)
    },
    "distributions.FlatSequence.log_prob": {"value": lambda room: torch.zeros(6)},
    "distributions.FlowGaussian": {
        "noise": lambda room: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        "transforms": lambda room: [],
        "points": lambda room: torch.zeros(2),
    },
    "distributions.Quantised": {
        "codes": lambda room: dist.Categorical(logits=torch.zeros(2, 2)).to_event(1)
    },
    "distributions.Quantised.log_prob": {"value": lambda room: torch.eye(2)},
    "distributions.Quantised.numbers": {"value": lambda room: torch.eye(2)},
    "distributions.StraightThrough": {"encoded": lambda room: torch.zeros(3, 2, 2)},
    "distributions.StraightThrough.log_prob": {"value": lambda room: torch.zeros(3, 2, 2)},
    "distributions.StraightThrough.numbers": {"value": lambda room: torch.zeros(3, 2, 2)},
    "classify": {"program": lambda room: room.m2},
    "completion": {
        "program": lambda room: room.gsm,
        "seen": lambda room: room.x,
        "held_out": lambda room: room.x + 1,
    },
    "topics": {
        "program": lambda room: room.gsm,
        "reference": lambda room: room.x,
        "num_words": lambda room: 2,
    },
    "perplexity": {"program": lambda room: room.gsm, "data": lambda room: room.x + 1},
    "models.DEF": {"hidden": lambda room: (4,), "observation": lambda room: "bernoulli"},
    "models.DMM": {"hidden": lambda room: (4,)},
    "models.VRNN": {"hidden": lambda room: (4,)},
    **{
        f"models.{name}.continuation": {
            "x": lambda room: torch.zeros(4, 3, 6),
            "lengths": lambda room: torch.tensor([3, 1, 2, 3]),
        }
        for name in ("DMM", "VRNN")
    },
    "models.ConditionalVAE": {"hidden": lambda room: (4,), "num_classes": lambda room: 3},
    "models.M2": {"hidden": lambda room: (4,)},
    "models.Resampled.mean": {"x": lambda room: room.x},
    "models.TableVAE": {
        "table": lambda room: COLUMNS,
        "kinds": lambda room: None,
        "hidden": lambda room: (4,),
    },
    "models.MultimodalVAE": {
        "modalities": lambda room: {"left": 3, "right": 3},
        "hidden": lambda room: (4,),
        "guide": lambda room: "product",
    },
    "conditionals.ProductOfExperts": {"experts": lambda room: [layers(4)]},
    "conditionals.MixtureOfExperts": {"experts": lambda room: [layers(4)]},
    "distributions.FixedMixture": {
        "mixture_distribution": lambda room: dist.Categorical(torch.ones(3)),
        "component_distribution": lambda room: components(),
    },
    "impute": {"program": lambda room: room.holes, "num_particles": lambda room: 4},
    "conditionals.Column": {"name": lambda room: "age", "kind": lambda room: "count"},
    "conditionals.LearnedConstant.forward": {"observed": lambda room: torch.ones(8, 6).bool()},
    "distributions.Incomplete": {
        "datum": lambda room: walk(torch.zeros(3, 2)),
        "observed": lambda room: torch.ones(3, 2).bool(),
    },
    "distributions.Incomplete.log_prob": {"value": lambda room: torch.zeros(3, 2)},
    "distributions.CensoredNormal": {
        "low": lambda room: torch.zeros(3, 2),
        "high": lambda room: torch.ones(3, 2),
    },
    "distributions.CensoredNormal.log_prob": {"value": lambda room: torch.zeros(3, 2)},
    "distributions.Columns": {
        "parts": lambda room: [(torch.arange(2), dist.Normal(torch.zeros(3, 2), 1.0))],
        "size": lambda room: 2,
    },
    "models.SBN": {"latent_dims": lambda room: (3,)},
    "models.VAE": {"hidden": lambda room: (4,)},
    "models.Autoencoder": {"hidden": lambda room: (4,)},
    "models.BayesianVAE": {"hidden": lambda room: (4,), "scale": lambda room: 0.02},
    "models.VQVAE": {
        "hidden": lambda room: (4,),
        "network": lambda room: "mlp",
        "positions": lambda room: 2,
        "prior": lambda room: "uniform",
    },
    "models.HierarchicalVAE": _LADDER,
    "models.LadderVAE": _LADDER,
    "models.TopDownVAE": {"latent_dims": lambda room: (2, 2), "hidden": lambda room: 4},
    "models.VQVAE.codes": {"x": lambda room: room.x},
    "nn.sizes": {"name": lambda room: "hidden", "values": lambda room: (3,)},
    "nn.as_shape": {"name": lambda room: "in_shape", "value": lambda room: (3,)},
    "nn.image_shape": {"name": lambda room: "in_shape", "value": lambda room: (1, 8, 8)},
    "nn.ConvCritic": {"in_shape": lambda room: (1, 8, 8), "channels": lambda room: (2,)},
    "nn.ConvCritic.forward": {"x": lambda room: torch.zeros(2, 1, 8, 8)},
    "nn.ConvCritic.see": {"x": lambda room: torch.zeros(2, 1, 8, 8)},
    "nn.Critic.forward": {"z": lambda room: torch.zeros(8, 2)},
    "nn.InnerProductCritic.forward": {"z": lambda room: torch.zeros(8, 2)},
    "nn.ConvEncoder": _CONV,
    "nn.ConvDecoder": {"out_shape": lambda room: (1, 8, 8), "channels": lambda room: (3, 2)},
    "nn.ConvEncoder.forward": {"x": lambda room: torch.zeros(2, 1, 8, 8)},
    "nn.ConvDecoder.forward": {"z": lambda room: torch.zeros(2, 6)},
    "nn.ConvDecoder.set_output_bias": {"bias": lambda room: torch.zeros(1, 8, 8)},
    "nn.GRU": {"in_features": lambda room: 2, "hidden": lambda room: 3},
    "nn.GRU.forward": {"x": lambda room: torch.zeros(4, 3, 2)},
    "nn.GRU.step": {"h": lambda room: torch.zeros(4, 3), "x": lambda room: torch.zeros(4, 2)},
    "nn.Transformer": {"in_features": lambda room: 2, "hidden": lambda room: 4},
    "nn.Transformer.forward": {"x": lambda room: torch.zeros(4, 3, 2)},
    "nn.CausalBlock": {"width": lambda room: 4, "heads": lambda room: 2},
    "nn.CausalBlock.forward": {"h": lambda room: torch.zeros(4, 3, 4)},
    "nn.OneHot.forward": {"x": lambda room: torch.zeros(2, 6)},
    "nn.BatchNorm.forward": {"x": lambda room: torch.zeros(2, 3)},
    "plots.collapse_curves": {"history": lambda room: HISTORY},
    "plots.cures": {"arms": lambda room: {"vae": {"elbo": (-1.0, 0.1), "kl": (1.0, 0.1)}}},
    "plots.curves": {"history": lambda room: HISTORY},
    "plots.piano_rolls": {"rolls": lambda room: {"data": room.x}},
    "plots.step_kl": {"curves": lambda room: {"dmm": torch.ones(3)}},
    "plots.documents": {"shares": lambda room: torch.eye(6)},
    "plots.diagnosis": {"found": lambda room: pv.diagnose(room.vae, room.x, probes=5)},
    "plots.gaps": {
        "measured": lambda room: pv.gaps(
            room.vae, room.x, local=room.local, annealed=room.short, num_particles=4
        )
    },
    "plots.interpolations": {"images": lambda room: torch.zeros(2, 3, 8, 8)},
    "plots.topic_words": {
        "topics": lambda room: torch.full((2, 3), 1 / 3),
        "vocabulary": lambda room: ["a", "b", "c"],
    },
    "plots.latent_map": {
        "codes": lambda room: torch.zeros(4, 2),
        "labels": lambda room: torch.arange(4),
    },
    "plots.posterior": {
        "log_density": lambda room: -(AXIS[:, None] ** 2) - AXIS**2,
        "grid": lambda room: (AXIS, AXIS),
    },
    "plots.reconstructions": {
        "originals": lambda room: torch.zeros(4, 8, 8),
        "reconstructed": lambda room: torch.zeros(4, 8, 8),
    },
    "plots.save": {
        "figure": lambda room: room.figure,
        "path": lambda room: room.folder / "figure.png",
    },
    "schedules.as_schedule": {"name": lambda room: "beta", "value": lambda room: 1.0},
    "data.Splits.images": {"x": lambda room: torch.zeros(2, 64)},
    "RefinedGlobals.sample": {},
    "Terms.kl": {"site": lambda room: "z"},
    "Terms.unit_kl": {"site": lambda room: "z"},
}

# Results and records of the library: how one is had, so that its methods can be called.
MADE: dict[str, Callable[[Room], Any]] = {
    "Classes": lambda room: pv.classify(room.m2, room.x),
    "Terms": lambda room: pv.Program.of(room.vae).terms(room.x),
    "Refined": lambda room: pv.refine(room.vae, room.x, room.hmc, compile=False),
    "RefinedGlobals": lambda room: pv.refine(room.globals_, room.x, room.hmc, compile=False),
    "Amortised": lambda room: pv.infer(room.vae, room.x),
    "LocalPosterior": lambda room: pv.infer(room.vae, room.x, how="local", settings=room.local),
    "data.Splits": lambda room: room.digits,
    "data.Vocabulary": lambda room: pv.data.Vocabulary.of(["a"], least=1),
    "LocalGuide": lambda room: room.local_guide,
    "Program": lambda room: pv.Program.of(room.vae),
    "models.LinearVAE": lambda room: pv.models.LinearVAE(6, 2),
}

# Records that verbs return, whose constructors nobody calls with values of their own.
RECORDS = {
    "AnnealedLikelihood",
    "Classes",
    "AggregatedPosterior",
    "FeatureDistances",
    "CodeUsage",
    "Diagnosis",
    "Gaps",
    "Imputed",
    "Perplexity",
    "Topics",
    "data.Corpus",
    "LogLikelihood",
    "Refined",
    "RefinedGlobals",
    "Run",
    "Sandwich",
    "Terms",
    "PerStep",
    "data.SequenceSets",
    "data.Splits",
    "Amortised",
    "LocalPosterior",
}

# Methods that are no doors, by name and by the reason.
INNER = {
    "forward": "a program calls it, on batches that the verbs have checked",
    "model": "as forward",
    "guide": "as forward",
    "sample": "the sample shape is torch's contract",
    "rsample": "as sample",
    "expand": "as sample",
    "loss_of": "an objective is called by fit, on terms that the library made",
    "loss_of_joint": "as loss_of",
    "per_datum": "as loss_of",
    "updates": "as loss_of",
    "bound": "as loss_of",
    "particle_weights": "as loss_of",
    "after_epoch": "a run calls it",
    "first_bad": "as loss_of",
    "critic_loss": "as loss_of",
    "critic_update": "as loss_of",
    "encoder_loss": "as loss_of",
    "decoder_loss": "as loss_of",
    "loss": "the contract of pyro.infer.ELBO: called by stock SVI",
    "loss_and_grads": "as loss",
    "differentiable_loss": "as loss",
    "transforms": "as forward",
    "descend": "as forward",
    "proportions": "as forward",
    "evidence": "as forward",
    "layer": "as forward",
    "observed": "as forward",
    "guide_of": "as forward",
    "decoder": "as forward",
    "encoder": "as forward",
    "features": "as forward",
    "label_logits": "as forward",
    "given_logits": "as forward",
    "log_prior": "as forward",
    "models.ConditionalVAE.prior": "as forward",
    "reads": "verbs call it, on what a user gives them",
    "blank": "as reads",
    "shows": "as reads",
    "completes": "as reads",
    "shown": "as reads",
    "there": "as forward",
    "cells": "as forward",
    "heard": "as forward",
    "known": "as forward",
    "statistics": "impute calls it",
    "of_statistics": "as statistics",
    "errors_of_statistics": "as statistics",
    "observed_log_prob": "Incomplete calls it",
    "filled": "as statistics",
    "standardised": "a program calls it",
    "weight_prior": "as forward",
    "weight_posterior": "as forward",
    "models.TopDownVAE.prior": "as forward",
    "models.LadderVAE.prior": "as forward",
    "models.HierarchicalVAE.prior": "as forward",
    "push_to_hub": "the network is behind it",
    "give_up": "a compiled loss calls it of itself",
    "doubt": "as give_up",
    "prepare": "as give_up",
    "conditionals.Categorical.output_bias": "refuses always",
    "distributions.Implicit.log_prob": "refuses always",
    "nn.ConvCritic.judge": "takes what see returns",
    "Joint": "a program makes it; its methods take traces of the library",
    **dict.fromkeys(
        [
            f"Program.{name}"
            for name in (
                *("as_given", "as_tensors", "check", "completed", "conform", "is_fixed", "look"),
                *("named", "observations"),
                *("passes", "quiet", "remember", "replace", "require_own_rows", "require_whole"),
                *("share_values", "tiled", "to", "unwrapped"),
            )
        ],
        "verbs call it, on what they have checked",
    ),
    "LocalGuide.has_rows": "verbs ask it",
    "LocalGuide.named": "as has_rows",
    "nn.BatchNorm": "torch's own",
    "distributions.BernoulliArray": "torch's own",
    "nn.BatchNorm.forward": "torch's own",
}
# Where an inner name is a door after all: networks are called by hand, draws are asked for by n.
DOORS = ("nn.", "Refined.", "RefinedGlobals.", "Amortised.", "LocalPosterior.")
