"""Loggers of a user's get the rows of the history, and a faulty one stops no run."""

import csv

import numpy as np
import pytest
import torch
from lightning_fabric.loggers import CSVLogger

import pyro_vae as pv
from pyro_vae.errors import ConfigError

X = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).round()


class Kept:
    """It has no other method than it must."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append({"step": step, **metrics})


class Full(Kept):
    def __init__(self, fails=False):
        super().__init__()
        self.calls, self.fails = [], fails

    def log_hyperparams(self, params):
        self.calls.append(params)

    def finalize(self, status):
        self.calls.append(status)

    def log_metrics(self, metrics, step):
        if self.fails:
            raise OSError("no route to host")
        super().log_metrics(metrics, step)


def train(**options):
    torch.manual_seed(0)
    settings = {"epochs": 2, "batch_size": 8, "valid": X[:5], "device": "cpu", "compile": False}
    return pv.fit(pv.models.VAE(6, 2, (5,)), X, **settings, **options)


def test_fabrics_csv_logger_holds_the_history(tmp_path):
    run = train(logger=CSVLogger(tmp_path, name="logs"))
    [path] = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name in ("epoch", "loss", "valid_elbo", "lr"):
        assert [float(row[name]) for row in rows] == run.history[name].tolist()
    assert [row["step"] for row in rows] == ["1", "2"]


def test_several_loggers_take_the_place_of_the_events(tmp_path):
    small, full = Kept(), Full()
    run = train(logger=[small, full], out=tmp_path / "run")
    assert small.rows == full.rows
    assert [row["loss"] for row in full.rows] == run.history["loss"].tolist()
    assert full.calls[0]["lr"] == 0.001 and full.calls[-1] == "success"
    assert not (tmp_path / "run" / "tensorboard").exists()
    train(out=tmp_path / "other")
    assert (tmp_path / "other" / "tensorboard").exists()


def names(settings):
    """Return the names of settings as MLflow and W&B make them of nested ones."""
    for name, value in settings.items():
        nested = names(value) if isinstance(value, dict) else ()
        yield from (f"{name}/{each}" for each in nested) if nested else (name,)


def test_settings_come_to_a_logger_by_names_that_it_takes():
    full = Full()
    train(logger=full)
    told = set(names(full.calls[0]))
    assert {"lr", "batch_size", "config/latent_dim", "config/posterior/name"} <= told
    assert not [n for n in told if not all(n.split("/")) or n.startswith(("rows", "architecture"))]


def test_a_logger_that_fails_is_told_of_once_and_the_run_goes_on():
    full = Full()
    with pytest.warns(UserWarning, match=r"Full gets no more rows \(OSError: no route") as told:
        run = train(logger=[Full(fails=True), full])
    assert len(told) == 1 and len(full.rows) == 2
    np.testing.assert_array_equal(run.history["loss"], train().history["loss"])


def test_a_logger_is_told_of_a_run_that_fails():
    full = Full()

    def stop(run):
        raise KeyError

    with pytest.raises(KeyError):
        train(logger=full, callbacks=[stop])
    assert full.calls[0]["lr"] == 0.001 and full.calls[-1] == "failed"


@pytest.mark.parametrize("logger", [3, "csv", [Kept(), None]])
def test_what_is_no_logger_is_refused(logger):
    with pytest.raises(ConfigError, match=r"logger: got .*expected a logger"):
        train(logger=logger)
