"""The speed table compares like with like: every competitor computes one loss, and one gradient."""

import importlib
import json
import math
import os
import sys
import types
import warnings
from pathlib import Path

import pytest
import recorded_graphs
import torch

ROOT = Path(__file__).parent.parent
KINDS = ("vae", "layered", "iwae", "conv")
PEERS = os.environ.get("PYRO_VAE_PEERS")
needs_peers = pytest.mark.skipif(PEERS is None, reason="$PYRO_VAE_PEERS names no interpreter")


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Let the root's folders be imported, as ``python -m benchmarks.speed`` does."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def speed(importable):
    """Return the benchmark's modules by name."""
    names = ["cases", "checks", "syncs", "epochs", "first", "floor", "measure", "peers", "report"]
    names += ["variants", "cuda_graph", "__main__"]
    found = {name: importlib.import_module(f"benchmarks.speed.{name}") for name in names}
    found["main"] = found.pop("__main__")
    return types.SimpleNamespace(
        **found,
        paired=importlib.import_module("benchmarks.paired"),
        slopes=importlib.import_module("benchmarks.slopes"),
    )


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def torchscript_is_deprecated():
    """Pyro's JitTrace_ELBO goes through torch.jit.trace."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
        yield


def small(speed, kind):
    """Return a small program of each kind."""
    return {
        "vae": lambda: speed.cases.vae(12, 7, 3, batch=16),
        "layered": lambda: speed.cases.layered(12, (8, 6, 5, 4, 3), hidden=7, batch=16),
        "iwae": lambda: speed.cases.iwae(12, 7, 4, num_particles=6, batch=8),
        "conv": lambda: speed.cases.conv(8, (3, 4), 5, batch=16),
    }[kind]()


def uncompiled(speed, case):
    """Return the variants that need no compiler, built."""
    found = speed.variants.variants(case)
    return {n: make() for n, make in found.items() if not speed.variants.needs_compiler(n)}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", KINDS)
def test_all_variants_take_the_same_steps(speed, kind):
    """Same weights, noise and optimizer: equal losses along four steps, hence equal gradients.

    The benchmark's own check of the losses, draw by draw, sees the same afterwards. Stock Pyro sums
    the loss over the batch, and Adam's eps of 1e-8 does not scale with it; its JIT draws noise
    while it traces, hence a first step that leaves no trace behind.
    """
    case = small(speed, kind)
    data = case.data()
    built = uncompiled(speed, case)
    assert len(built) == 3 + len(case.stock)
    paths = {}
    for name, variant in built.items():
        if name in case.stock:
            speed.checks.losses(variant, data[0], 1)
            variant.optimizer.optim_objs.clear()
        variant.set_lr(1e-2)
        path = []
        with variant.running():
            for step, x in enumerate(data[:4]):
                torch.manual_seed(step)
                path.append(float(variant.step(x)))
        paths[name] = path
    base = paths.pop(speed.variants.BASE)
    assert abs(base[0] - base[-1]) > 1e-3  # the weights did move
    for name, path in paths.items():
        assert path == pytest.approx(base, rel=1e-6 if name in case.stock else 1e-9), name
    found = speed.checks.agreement(built, data[0], draws=5)
    assert all(row["same_noise"] for row in found.values())


def test_a_loss_that_is_off_has_a_large_z(speed):
    """Independent samples of one law: |z| < 5 fails by chance once in 2e6 tries."""
    drawn = torch.randn(2, 200, generator=torch.Generator().manual_seed(0)).tolist()
    assert abs(speed.checks.compared(*drawn)["z"]) < 5
    shifted = [value + 1 for value in drawn[0]]
    assert speed.checks.compared(shifted, drawn[1])["z"] > 5


def test_set_lr_zero_keeps_the_weights(speed):
    case = small(speed, "vae")
    x = case.data()[0]
    for name, variant in uncompiled(speed, case).items():
        speed.checks.losses(variant, x, 1)  # Pyro's JIT draws noise while it traces
        first = speed.checks.losses(variant, x, 2)
        assert speed.checks.losses(variant, x, 2) == first, name
        variant.set_lr(1e-2)
        with variant.running():
            variant.step(x)
        assert speed.checks.losses(variant, x, 2) != first, name


# -- the floor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, "trace"])
def test_the_floor_is_the_products_of_a_step(speed, compile):
    """Forward: four layers; backward: four for the weights, three for what lies below them."""
    case = small(speed, "vae")
    variant = speed.variants.Ours(case, compile)
    x = case.data(1)[0]
    with variant.running():
        for _ in range(2):  # the second step compares the graph with the program once more
            variant.step(x)
        calls = speed.floor.recorded(lambda: variant.step(x))
    assert len(calls) == 11
    layers = [(12, 7), (7, 6), (3, 7), (7, 12)]
    thrice, first = sum(3 * a * b for a, b in layers), 12 * 7
    assert speed.floor.flops(calls) == 2 * 16 * (thrice - first)
    speed.floor.replay(calls)()


def test_the_floor_counts_convolutions(speed):
    """Two down, two up, and a backward pass of each."""
    case = small(speed, "conv")
    variant = speed.variants.Ours(case, "trace")
    x = case.data(1)[0]
    with variant.running():
        for _ in range(2):  # the second step compares the graph with the program once more
            variant.step(x)
        calls = speed.floor.recorded(lambda: variant.step(x))
    names = [name for name, *_ in calls]
    assert names.count("aten.convolution") == names.count("aten.convolution_backward") == 4
    work = speed.floor.replay(calls)
    assert speed.floor.recorded(work)[0][0] in names
    assert len(speed.floor.recorded(work)) == len(calls)


# -- the measurement -------------------------------------------------------------------------------


def without_compiler(speed, monkeypatch):
    """Make everything that goes through Inductor fail as it does without a C++ compiler."""
    made = speed.variants.variants

    def fail():
        raise RuntimeError("no compiler in /somewhere/deep/bin/g++\nmore")

    def broken(case, device="cpu"):
        found = made(case, device)
        return {n: fail if speed.variants.needs_compiler(n) else b for n, b in found.items()}

    monkeypatch.setattr(speed.measure, "variants", broken)


def test_a_program_is_measured_and_a_failure_recorded(speed, monkeypatch, tmp_path):
    """Two blocks of a small program; one compiler is missing, and the file says so."""
    without_compiler(speed, monkeypatch)
    settings = speed.measure.Settings(blocks=2, seconds=0.002, parts=())
    result = speed.measure.measure("small", small(speed, "vae"), settings)
    text = result.write(tmp_path).read_text()
    row = json.loads(text)
    details = row["details"]
    assert row["name"] == "speed_small"
    assert math.isnan(row["value"])
    assert details["failed"][speed.variants.OURS] == "RuntimeError: no compiler in g++"
    assert len(details["ratios"]) == 6  # by hand, Pyro's two, two of ours, the products
    assert details["ratios"][speed.variants.BASE]["wall"]["median"] == 1
    assert details["trace_over"][speed.floor.FLOOR]["cpu"]["median"] > 0
    after = details["losses_after"]
    assert max(after.values()) == pytest.approx(min(after.values()), rel=1e-3)
    absent = " ".join(details["not_measured"])
    assert "not run on a GPU" in absent and "NumPyro" in absent and "epochs" in absent
    shown = speed.report.table(details, "title")
    assert "failed, RuntimeError" in shown and "not run on a GPU" in shown


def test_a_variant_of_another_loss_is_not_timed(speed, monkeypatch):
    """An eager step whose loss is one nat off is named, and has no row."""

    class Shifted(speed.variants.Ours):
        def step(self, x):
            return super().step(x) + 1.0

    def made(case, device="cpu"):
        return {
            speed.variants.BASE: lambda: speed.variants.ByHand(case, False),
            "off": lambda: Shifted(case, False),
        }

    monkeypatch.setattr(speed.measure, "variants", made)
    settings = speed.measure.Settings(parts=())
    lineup = speed.measure.LineUp()
    case = small(speed, "vae")
    monkeypatch.setattr(speed.checks, "DRAWS", 400)
    speed.measure.start_variants(case, settings, Path("unused"), lineup)
    assert not lineup.failed
    monkeypatch.setattr(
        speed.measure, "agreement", lambda v, x: speed.checks.agreement(v, x, draws=300)
    )
    speed.measure.check(case, settings, lineup)
    assert lineup.failed["off"].startswith("computes another loss")
    assert list(lineup.variants) == [speed.variants.BASE]


def test_rounding_is_no_other_loss(speed):
    """bfloat16 shifts the mean by what many draws can see; 0.1 % of it is what is asked for."""
    base = {"mean_loss": 500.0, "z": 0.0}
    off = {"mean_loss": 500.4, "z": 8.0}
    assert speed.measure.same_loss(speed.variants.BF16, off, base)
    assert not speed.measure.same_loss(speed.variants.OURS, off, base)
    assert not speed.measure.same_loss(speed.variants.BF16, {**off, "mean_loss": 501.0}, base)


def test_ratios_are_taken_within_a_round(speed):
    """A machine that slows tenfold from round to round leaves the ratios as they are."""
    rounds = iter(k for k in range(4) for _ in range(3))
    works = {name: lambda s=s: (s * 10.0 ** next(rounds), 7.0) for s, name in enumerate("abc", 1)}
    times = speed.paired.interleaved(works, blocks=4)
    ratios = {name: speed.paired.ratios(taken, times["a"]) for name, taken in times.items()}
    assert [ratios[name]["wall"].median for name in "abc"] == pytest.approx([1, 2, 3])
    assert [ratios[name]["cpu"].median for name in "abc"] == [1, 1, 1]


def test_blocks_change_their_order(speed):
    seen = []
    works = {name: lambda name=name: seen.append(name) for name in "abc"}
    speed.paired.interleaved(works, blocks=2)
    assert "".join(seen) == "abccba"


def test_epochs_are_interleaved_with_fit(speed):
    """Four others' epochs for each of fit's that counts, and a ratio to each."""
    case, calls = small(speed, "vae"), []
    others = {"other": lambda: (calls.append(0) or 2.0, 1.0)}
    found = speed.epochs.epochs(case, "trace", steps=3, rounds=3, others=others)
    assert len(calls) == 3 + speed.epochs.WARM
    assert found["steps"] == 3
    for name in (speed.epochs.BARE, speed.epochs.STEP, "other"):
        assert 0 < found[name]["wall"]["median"] < 1e3
    assert found["other"]["added_microseconds_per_step"] < 0  # two seconds are longer than ours


def test_first_steps_come_from_fresh_processes(speed, tmp_path, monkeypatch):
    """Seconds and memory of another process; one that fails is told."""
    names = {speed.variants.TRACE: False}
    how = {"cache": tmp_path / "cache", "threads": 1, "device": "cpu"}
    row = speed.first.first_steps("vae_64_32_8", names, **how)[speed.variants.TRACE]["cold"]
    assert row["first_step_seconds"] > 0
    assert row["peak_mib"] >= row["peak_mib_before"] > 50
    monkeypatch.setattr(sys, "executable", "false")
    assert speed.first.fresh("vae_64_32_8", "any", tmp_path, 1, "cpu") == {"failed": "no message"}


# -- on a GPU, as far as it goes without one -------------------------------------------------------


def test_waits_and_launches_are_counted(speed):
    names = ["aten::mm", "cudaLaunchKernel", "cudaStreamSynchronize", "cudaDeviceSynchronize"]
    names += ["cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMalloc"]
    assert speed.syncs.counts(names) == {"waits": 2, "launches": 4}


def test_on_a_gpu_there_are_three_more_rows(speed):
    """The loop captured by hand, and ours in half precision; by hand with CUDA graphs."""
    case = small(speed, "vae")
    v = speed.variants
    rows = list(v.variants(case, "cuda"))
    assert rows[:3] == [v.BASE, v.BY_HAND_COMPILED, v.CUDA_GRAPH]
    assert set(rows) - set(v.variants(case)) == {v.CUDA_GRAPH, v.BF16}
    assert {name for name in rows if v.needs_compiler(name)} == {v.BY_HAND_COMPILED, v.OURS, v.BF16}


def test_a_captured_loop_takes_the_steps_of_the_loop(speed, monkeypatch):
    """Recorded on the CPU: new batches and new noise at each replay, and no step before the first.

    What is captured by address is seen by what does not change: an lr that were a number, a batch
    that were another tensor.
    """
    recorded_graphs.stand_in(monkeypatch)
    case = small(speed, "vae")
    data, paths = case.data(), []
    for variant in (
        speed.variants.ByHand(case, False),
        speed.variants.CUDAGraphByHand(case, "cpu"),
    ):
        path = []
        for step, x in enumerate(data[:5]):
            variant.set_lr(1e-2 * (step + 1))
            torch.manual_seed(step)
            path.append(float(variant.step(x)))
        paths.append(path)
    assert paths[1] == pytest.approx(paths[0], rel=1e-5)
    assert len(set(paths[0])) == 5


def test_products_are_captured_on_a_gpu(speed, monkeypatch):
    recorded_graphs.stand_in(monkeypatch)
    case = small(speed, "vae")
    variant = speed.variants.Ours(case, False)
    x = case.data(1)[0]
    with variant.running():
        variant.step(x)
        calls = speed.floor.recorded(lambda: variant.step(x))
    work = speed.floor.replay(calls, "cuda")
    assert work.__self__.calls and len(speed.floor.recorded(work)) == len(calls)


def test_a_result_names_the_card(speed, monkeypatch):
    assert speed.cuda_graph.named("cpu", 2) == "cpu, 2 threads"
    assert speed.cuda_graph.facts("cpu") == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert speed.cuda_graph.named("cuda", 1) == "cuda, NVIDIA H200"
    assert speed.cuda_graph.facts("cuda") == {"cuda": "13.0", "float32 products": "highest"}
    assert speed.measure.Settings(device="cuda").suffix == "_cuda"


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_jax_that_fell_back_to_the_cpu_is_no_row_of_a_gpu(monkeypatch, platform):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "speed")
    peer, chosen = importlib.import_module("peer_numpyro"), []
    jax = types.SimpleNamespace(
        devices=lambda: [types.SimpleNamespace(platform=platform)],
        config=types.SimpleNamespace(update=lambda *given: chosen.append(given)),
    )
    if platform == "cpu":
        with pytest.raises(RuntimeError, match="JAX runs on 'cpu', expected 'gpu'"):
            peer.on_the_card(jax)
    else:
        peer.on_the_card(jax)
        assert chosen == [("jax_default_matmul_precision", "float32")]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_names_no_path_and_resumes(speed, tmp_path, monkeypatch):
    typed = speed.main.typed(["--blocks", "3", "--peers", str(tmp_path)])
    assert typed == "python -m benchmarks.speed --blocks 3 --peers peers/bin/python"
    without_compiler(speed, monkeypatch)
    monkeypatch.setitem(speed.cases.CASES, "vae_64_32_8", small(speed, "vae"))
    monkeypatch.delenv("PYRO_VAE_PEERS", raising=False)
    argv = ["--programs", "vae_64_32_8", "--blocks", "2", "--seconds", "0.001", "--parts"]
    argv += ["--out", str(tmp_path)]
    speed.main.main(argv)
    path = tmp_path / "speed_vae_64_32_8.json"
    first = path.read_text()
    speed.main.main([*argv, "--resume"])
    assert path.read_text() == first
    settings = speed.measure.Settings(blocks=3, seconds=0.001, parts=())
    assert speed.main.measured_today("vae_64_32_8", settings, tmp_path) is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--blocks", "1"], "quartiles"),
        (["--peers", "no_such_python"], "--peers"),
        (["--device", "cuda"], "--device cuda: no GPU is at hand"),
    ],
)
def test_wrong_arguments_are_told(speed, argv, message, capsys):
    with pytest.raises(SystemExit):
        speed.main.parsed(argv)
    assert message in capsys.readouterr().err


def test_the_table_names_its_programs(speed):
    """The sizes that the published table speaks of."""
    assert {case.batch for case in speed.cases.CASES.values()} == {128, 1024, 64, 20}
    assert len(speed.cases.layered(8, (2, 2, 2, 2, 2), 4, 4).program().up) == 5


def test_slopes_of_known_growth(speed):
    assert speed.slopes.slope([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert speed.slopes.slope([1, 10], [5.0, 500.0]) == pytest.approx(2)
    times = [[(1.0, 1.0), (2.0, 1.0)], [(4.0, 1.0), (8.0, 1.0)]]
    assert speed.slopes.slopes([1, 4], times, 0) == pytest.approx([1, 1])
    assert speed.slopes.slopes([1, 4], times, 1) == pytest.approx([0, 0])


# -- the peers -------------------------------------------------------------------------------------


@needs_peers
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peer", ["numpyro", "pythae"])
def test_peers_compute_the_same_loss_and_learn(speed, kind, peer, tmp_path):
    """Independent noise, means of 400 draws: |z| < 5 fails by chance once in 2e6 tries."""
    case = small(speed, kind)
    if peer == "pythae" and not speed.peers.pythae_can(case):
        pytest.skip("pythae has no ladder of Gaussians")
    with speed.peers.Peer(PEERS, peer, case, tmp_path) as worker:
        losses = worker.losses(400)
        assert abs(speed.checks.compared(losses, speed.checks.reference(case, peer))["z"]) < 5
        for mode in ("jit", "scan") if peer == "numpyro" else ("epoch",):
            work = worker.block(mode, 8)
            for _ in range(40):
                wall, _ = work()
            assert wall > 0
            after = worker.ask("losses", draws=50, mode=mode)["losses"]
            assert sum(after) / 50 < sum(losses) / 400 - 0.02 * sum(losses) / 400


@needs_peers
def test_the_peers_interpreter_is_checked(speed):
    assert speed.peers.interpreter(PEERS) == PEERS
    with pytest.raises(speed.peers.PeerError, match="--peers"):
        speed.peers.interpreter("no_such_python")


def test_a_worker_that_dies_is_told(speed, tmp_path):
    with pytest.raises(speed.peers.PeerError, match="the worker is gone"):
        speed.peers.Peer("false", "pythae", small(speed, "vae"), tmp_path)


def test_help_says_how_to_make_the_peers_environment(speed, capsys):
    with pytest.raises(SystemExit):
        speed.main.parsed(["--help"])
    assert "pip install --no-deps pythae" in capsys.readouterr().out
