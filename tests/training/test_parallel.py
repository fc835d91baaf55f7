"""Two processes take the steps of one: gradients, weights, files and errors."""

import json
import os
import socket
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import two_processes
from forked import connected, end_well, forks, torchrun
from torch.utils.data import DataLoader, TensorDataset
from two_processes import Known, Normed, data, exact, fit, frozen, judged

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DeviceError, ProcessError
from pyro_vae.training import parallel

ROOT = Path(pv.__file__).parents[1]
NEAR = {"rtol": 1e-12, "atol": 1e-12}  # float64; only the order of the sums differs


def run(command, folder):
    """Run a command on this checkout, at one thread per process."""
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")},
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def started(rank, port, folder):
    """Run all scenarios in one of two processes as torchrun starts them."""
    torch.set_num_threads(1)
    os.environ |= torchrun(rank, 2, port)
    found = two_processes.scenarios(rank, folder)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Run all scenarios in two processes, once, and return what each found."""
    import lightning_fabric  # noqa: F401  once, not in each fork

    folder = tmp_path_factory.mktemp("two")
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        end_well(started, [(rank, agent.port, folder) for rank in (0, 1)])
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def close(found, expected):
    """Compare nested numbers to the last digits but a few."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name])
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            close(*pair)
    else:
        new, old = (torch.tensor(value, dtype=torch.float64) for value in (found, expected))
        torch.testing.assert_close(new, old, **NEAR)


# -- the same steps --------------------------------------------------------------------------

ALONE = {
    "eager": lambda: exact(False, 23, clip_norm=0.4),  # shares of 4, 4 and 3 + 4 rows
    "trace": lambda: exact("trace", 25),  # the last batch has one row: both take it whole
    # Shares of 5 and 6 rows; the un-annealed ELBO is measured on the loader's batch.
    "ragged loader": lambda: exact(False, None, epochs=1, beta=0.5),
    "iwae": lambda: exact(False, 23, objective=pv.IWAE(2), beta=0.5),
}


@pytest.mark.parametrize("name", ALONE)
def test_gradients_weights_and_history_are_those_of_one_process(both, name):
    """A global weight, so that N/B counts; a ragged batch; clipping by the global norm."""
    alone = ALONE[name]()
    assert len(alone["grads"]) == alone["steps"] in (1, 6, 8)
    for found in both:
        close(found[name], alone)


def test_gradients_are_summed_in_bfloat16_and_the_loss_is_not(both):
    alone = exact("trace", 8, epochs=1)
    for found in both:
        assert found["bfloat16"]["history"]["loss"] == pytest.approx(
            alone["history"]["loss"], rel=1e-12
        )
        for name, grad in alone["grads"][0].items():
            new, old = (torch.tensor(g) for g in (found["bfloat16"]["grads"][0][name], grad))
            assert torch.equal(new.bfloat16().to(new.dtype), new), "not summed in bfloat16"
            assert 0 < (new - old).abs().max() < 2**-7 * old.abs().max()


def test_another_type_of_the_sums_is_refused():
    with pytest.raises(ConfigError, match=r"reduce_dtype: got torch.float16, expected None, torch"):
        fit(Known(), data(8), reduce_dtype=torch.float16)


def test_clipping_was_at_work():
    norms = [
        torch.cat([torch.tensor(grad).flatten() for grad in step.values()]).norm().item()
        for step in exact(False, 23, clip_norm=1e9)["grads"]
    ]
    assert max(norms) > 0.4


def test_all_processes_hold_the_same_bits(both):
    for name in (*ALONE, "bfloat16", "normed", "spread", "stopped", "patience", "cut"):
        assert both[0][name] == both[1][name], name
    assert both[0]["resumed"] == both[1]["resumed"]


def test_all_start_from_the_weights_of_the_first(both):
    program = Known(seed=0)
    other = Known(seed=1)
    for found in both:
        assert found["spread"]["state"]["parts.Known.gain"] == program.gain.tolist()
        assert found["spread"]["state"]["parts.Known.gain"] != other.gain.tolist()


def test_running_statistics_are_those_of_all_rows(both):
    """Means to the last digits; a variance within shares lacks what lies between their means."""
    alone = fit(Normed(), data(27)[0], optimizer=frozen)["state"]
    for found in both:
        state = found["normed"]["state"]
        for key, value in alone.items():
            if "running_var" in key:
                old = torch.tensor(value)
                assert ((torch.tensor(state[key]) - old).abs() < 0.5 * old).all()
            elif "running_mean" in key or "num_batches" in key:
                close(state[key], value)
                assert value != 0 and value != [0.0] * 4
            else:
                assert state[key] == value, key  # constants, to the bit


# -- data and noise --------------------------------------------------------------------------


def test_a_distributed_sampler_has_dealt_the_rows(both):
    whole = sorted(data(24)[0][:, 0].tolist())
    epochs = list(zip(both[0]["dealt"], both[1]["dealt"], strict=True))
    assert all(sorted(first + second) == whole for first, second in epochs)
    assert epochs[0][0] != epochs[1][0]  # dealt anew


def test_rows_that_are_dealt_already_are_all_trained_on(both):
    """By a sampler of the user's that takes every other row."""
    steps = [[*range(8)], [*range(8, 16)], [*range(16, 20)]]  # of all processes together
    loader = DataLoader(TensorDataset(*data(20)), batch_sampler=steps)
    alone = exact(False, None, loader, epochs=1, beta=0.5)
    for rank in (0, 1):
        found = both[rank]["sampler"]
        close({**found, "history": {}}, {**alone, "history": {}})
        close(found["history"]["loss"], alone["history"]["loss"])


def test_rows_that_all_processes_train_on_are_counted(both):
    assert all("had 40 rows over 2 processes, and N is 20" in found["doubled"] for found in both)


def test_validation_rows_are_shared_or_dealt_already(both):
    """In another order in each process they are taken as dealt, twice: the mean is the same."""
    alone = fit(Known(), data(16), optimizer=frozen, valid=data(20))
    for found in both:
        close(found["judged"], alone)
        close(found["judged apart"], alone)


def test_verbs_are_answered_together_as_by_one_process(both):
    """Each pass has noise of its own; a global level is held for all of them."""
    alone = judged(0)
    for found in both:
        assert found["verbs"].pop("apart").startswith("DataError: across_ranks: the 2 processes")
        close(found["verbs"], {name: value for name, value in alone.items() if name != "apart"})
    assert alone["elbo"] != alone["again"]


def test_each_process_draws_noise_of_its_own_and_the_seeds(both):
    (first, again), (second, _) = both[0]["noise"], both[1]["noise"]
    assert first == again and len(first) == 4
    assert not set(first) & set(second)


# -- stopping, files, errors -------------------------------------------------------------------


def test_a_poisoned_row_stops_all_before_it_moves_a_weight(both):
    first, second = (found["diverged"] for found in both)
    assert first["error"].startswith("TrainingDiverged") and first["state"] == second["state"]
    assert second["error"].startswith("TrainingDiverged")
    assert all(torch.tensor(v).isfinite().all() for v in first["state"].values())
    assert first["state"]["gain"] != Known().gain.tolist()  # two steps were taken


def test_a_callback_of_any_process_stops_all(both):
    assert all(len(found["stopped"]["history"]["loss"]) == 1 for found in both)


def test_patience_ends_all(both):
    assert all(len(found["patience"]["history"]["loss"]) == 3 for found in both)


def test_a_run_that_is_cut_within_an_epoch_goes_on_with_it(both):
    assert both[0]["cut"]["resumed"] == both[0]["cut"]["straight"]
    assert both[0]["cut"]["straight"]["steps"] == 8


def test_a_resumed_run_is_the_straight_one(both):
    for found in both:
        resumed = found["resumed"]
        assert resumed["resumed"] == resumed["straight"]
        assert resumed["loaded"] == resumed["trained"]


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "rows differ": "ConfigError: the 2 processes disagree: rows of data is [16, 17] by rank",
        "small batch": "ConfigError: batch_size: got 3 rows for 2 devices, expected at least 4",
        "other number": "ConfigError: devices: got 3, this script was started in 2 processes",
        "dealt valid": "ConfigError: valid: got a loader with a DistributedSampler",
        "subsampling": "ProgramError: devices: this program draws its own minibatch",
    }.items(),
)
def test_errors_reach_all(both, name, expected):
    assert all(found[name].startswith(expected) for found in both)


@pytest.mark.parametrize("name", [*two_processes.DIFFERENT, "rows"])
def test_processes_that_differ_stop_with_the_name_of_what_differs(both, name):
    for found in both:
        assert found["different"][name].startswith("ConfigError: the 2 processes disagree: ")
        assert f" {name}" in found["different"][name].split("; run one script")[0]


@pytest.mark.parametrize(
    ("place", "rank", "own"),
    [
        ("step", 1, "KeyError: 'no such row'"),
        ("callback", 0, "KeyboardInterrupt: "),
        ("argument", 1, "ConfigError: lr_schedule"),
        ("data", 1, "DataError: "),
        ("count", 1, "ConfigError: epochs: got 0"),
    ],
)
def test_an_error_of_one_process_ends_the_other(both, place, rank, own):
    assert both[rank]["failed"][place].startswith(own)
    assert both[1 - rank]["failed"][place].startswith(f"ProcessError: process {rank}: {own}")


def test_after_an_error_the_processes_train_as_before(both):
    assert both[0]["failed"]["after"] == both[1]["failed"]["after"] == both[0]["eager"]


@pytest.mark.parametrize("word", ["process 1: KeyError: 'no such row'", None])
def test_an_error_while_others_still_connect_is_told_of(word, monkeypatch):
    """It was one of sockets: the process that failed had closed its own before all were joined."""
    store, lines = torch.distributed.HashStore(), parallel._Lines

    def closed():
        if word:
            store.set("pyro_vae/error/1", word)
        raise RuntimeError("connectFullMesh failed")

    monkeypatch.setattr(torch.distributed, "new_group", closed)
    monkeypatch.setattr(parallel, "default_store", lambda: store)
    monkeypatch.setattr(parallel, "_WORD", timedelta(milliseconds=10))
    for name, value in {"_opened": 0, "_failure": None}.items():
        monkeypatch.setattr(lines, name, value)
    with pytest.raises(ProcessError if word else RuntimeError, match=word or "FullMesh"):
        lines()
    assert lines._failure == word


# -- starting ----------------------------------------------------------------------------------

TRAIN = """
import torch, pyro_vae as pv
torch.manual_seed(0)
x = torch.bernoulli(torch.full((40, 6), 0.3))
run = pv.fit(pv.models.VAE(6, 2, (8,)), x, epochs=1, devices=2, device="cpu", out="run")
loaded = pv.load("run")
text = f"rank {run.rank} of {run.world_size} {run.device} {len(run.history['loss'])}"
open(f"{run.rank}.txt", "w").write(text)  # to files: two printing processes mix their letters
"""


@pytest.mark.slow
def test_a_script_starts_its_own_processes(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    run(["train.py"], tmp_path)
    found = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert found == ["rank 0 of 2 cpu 1", "rank 1 of 2 cpu 1"]


@pytest.mark.parametrize("devices", [0, -1, 2.5, "all", True])
def test_devices_is_a_number(devices):
    if devices is True:
        devices = False
    with pytest.raises(ConfigError, match="devices: got"):
        pv.fit(Known(), data(8), devices=devices)


@pytest.mark.parametrize("devices", ["auto", 1])
def test_one_process_starts_nothing(monkeypatch, devices):
    monkeypatch.setattr(parallel, "_launch", None)
    world = parallel.join(devices, "cpu")
    assert type(world) is parallel.World and world.size == 1 and world.main


@forks
def test_processes_that_the_user_has_connected_start_no_others(monkeypatch, tmp_path):
    """Without torchrun nothing in the environment tells of them; to start more would never end.

    In a fork: one of a process that has had connections of gloo itself can make none.
    """

    def fabric(**options):
        raise AssertionError(f"started with {options}")

    def joined(rank):
        own = torch.distributed.get_world_size
        torch.distributed.get_world_size = lambda *_: 2
        size = parallel.join("auto", "cpu").size
        torch.distributed.get_world_size = own
        return size

    monkeypatch.setattr("lightning_fabric.Fabric", fabric)
    assert connected(1, joined, tmp_path) == [2]


SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NODEID": "0",
    "MASTER_ADDR": "127.0.0.1",
}


def joined_by_srun(rank, port, folder):
    """Join the other process of a step of Slurm."""
    os.environ |= {**SRUN, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "MASTER_PORT": port}
    world = parallel.join("auto", "cpu")
    (folder / f"{world.rank}.txt").write_text(f"{world.size} {world.any(world.rank == 1)}")


@forks
def test_the_processes_of_srun_join_one_group(tmp_path):
    import lightning_fabric  # noqa: F401  once, not in each fork

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    end_well(joined_by_srun, [(rank, port, tmp_path) for rank in "01"])
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in "01"] == ["2 True"] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SLURM_NTASKS": "4"}, "a Slurm job of 4 tasks, and no srun has started.*devices=1"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NUM_NODES": "2"}, "3 processes on 2"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "started by MPI in 2 processes.*devices=1"),
    ],
)
def test_a_job_that_cannot_be_joined_is_refused_and_one_process_trains_alone(
    given, said, monkeypatch
):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        parallel.join("auto", "cpu")
    assert type(parallel.join(1, "cpu")) is parallel.World


def test_slurm_over_many_machines_is_read(monkeypatch):
    """Four machines with eight tasks; a shell within a job is one process."""
    asked = []
    monkeypatch.setattr(parallel, "_launch", lambda *a: asked.append(a) or torch.device("cpu"))
    monkeypatch.setattr(parallel, "Group", lambda device: device)
    steps = {"SLURM_STEP_NUM_TASKS": "32", "SLURM_STEP_NUM_NODES": "4", "SLURM_NTASKS": "32"}
    for name, value in {**SRUN, **steps}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    parallel.join("auto", "cpu")
    assert asked == [("cpu", 8, 4)]
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert type(parallel.join("auto", "cpu")) is parallel.World


def test_without_a_script_there_is_nothing_to_start(monkeypatch):
    monkeypatch.delattr("__main__.__file__", raising=False)
    with pytest.raises(ConfigError, match="devices: got 2, which runs the script once per device"):
        fit(Known(), data(8), devices=2)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:0", "each of which takes its own"), ("cuda", "this machine has 1 CUDA device;")],
)
def test_more_processes_than_devices(monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=message):
        parallel.join(2, device)


def test_torchrun_over_many_machines_is_read(monkeypatch):
    """Four machines with eight devices: 32 processes, of which Fabric makes none."""
    asked = []
    monkeypatch.setattr(parallel, "_launch", lambda *a: asked.append(a) or torch.device("cpu"))
    monkeypatch.setattr(parallel, "Group", lambda device: device)
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": 32,
        "LOCAL_WORLD_SIZE": 8,
    }.items():
        monkeypatch.setenv(name, str(value))
    parallel.join("auto", "cpu")
    parallel.join(8, "cpu")
    assert asked == [("cpu", 8, 4)] * 2
    with pytest.raises(ConfigError, match="got 4, this script was started in 8 processes"):
        parallel.join(4, "cpu")
