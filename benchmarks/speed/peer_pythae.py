"""pythae's side: its VAE or IWAE with the same networks, an epoch of its own trainer at a time."""

import tempfile
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from serve import measured, serve
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Encoder(BaseEncoder):
    """Networks of ours under pythae's names; its covariance is the logarithm of a variance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> ModelOutput:
        """Return mean and log variance."""
        loc, log_scale = self.net(x).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """pythae's cross-entropy takes probabilities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> ModelOutput:
        """Return the pixels' probabilities."""
        return ModelOutput(reconstruction=self.net(z).sigmoid())


class Worker:
    """One program, trained epoch by epoch."""

    def start(self, *, file: str, threads: int, device: str, **case: Any) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        with np.load(file, allow_pickle=False) as arrays:
            weights = {k[2:]: torch.from_numpy(arrays[k]) for k in arrays if k.startswith("w:")}
            self.data = torch.from_numpy(arrays["data"])
        self.model = built(case, weights)
        batch = self.data.shape[1]
        rows = self.data.flatten(0, 1)
        self.folder = tempfile.TemporaryDirectory()
        config = BaseTrainerConfig(
            output_dir=self.folder.name,
            per_device_train_batch_size=batch,
            num_epochs=1,
            learning_rate=1e-3,
            optimizer_params={"fused": True},
            no_cuda=device == "cpu",
        )
        self.trainer = BaseTrainer(
            self.model, BaseDataset(rows, torch.zeros(len(rows))), training_config=config
        )
        self.trainer.prepare_training()
        self.epoch = 0
        return {"versions": {"pythae": "0.1.2", "torch": torch.__version__}}

    def run(self, *, mode: str, steps: int) -> dict[str, float]:
        """Train one epoch: ``mode`` is ``epoch``, and ``steps`` must be its length."""
        assert mode == "epoch" and steps == len(self.trainer.train_loader)
        self.epoch += 1
        return measured(lambda: self.trainer.train_step(self.epoch))

    def losses(self, *, draws: int, mode: str = "first") -> dict[str, list[float]]:
        """Return losses of the first batch at the present weights."""
        inputs = {"data": self.data[0].to(next(self.model.parameters()).device)}
        with torch.no_grad():
            return {"losses": [float(self.model(inputs).loss) for _ in range(draws)]}


def built(case: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """Return pythae's model with the given weights."""
    nets = networks(case, weights)
    for prefix, net in nets.items():
        own = {k.removeprefix(prefix + "."): v for k, v in weights.items() if k.startswith(prefix)}
        net.load_state_dict(own)
    sizes: dict[str, Any] = {
        "input_dim": tuple(case["shape"]),
        "latent_dim": case["latent"],
        "reconstruction_loss": "bce",
    }
    encoder, decoder = Encoder(nets["encoder"]), Decoder(nets["decoder"])
    if case["kind"] == "iwae":
        return IWAE(IWAEConfig(number_samples=case["num_particles"], **sizes), encoder, decoder)
    return VAE(VAEConfig(**sizes), encoder, decoder)


def networks(case: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Return encoder and decoder, of the sizes that the weights have."""
    if case["kind"] != "conv":
        return {side: stack(weights, side, case["activation"]) for side in ("encoder", "decoder")}
    (a, b), small = case["channels"], case["small"]
    encoder = nn.Sequential(
        nn.Conv2d(1, a, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(a, b, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(b * small**2, 2 * case["latent"]),
    )
    decoder = nn.Sequential(
        nn.Linear(case["latent"], b * small**2),
        nn.Unflatten(1, (b, small, small)),
        nn.ReLU(),
        nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(a, 1, 3, 2, 1, output_padding=1),
    )
    return {"encoder": encoder, "decoder": decoder}


def stack(weights: dict[str, Tensor], prefix: str, activation: str) -> nn.Sequential:
    """Return the dense layers whose weights carry a prefix."""
    names = [n for n in weights if n.startswith(prefix) and n.endswith("weight")]
    layers: list[nn.Module] = []
    for name in names:
        out, into = weights[name].shape
        layers += [nn.Linear(into, out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


if __name__ == "__main__":
    serve(Worker())
