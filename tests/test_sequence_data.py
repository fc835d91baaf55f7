"""Sequences from files, padded, and dealt out in batches of about one length."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions.transforms import AffineTransform
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.distributions import Chain, Padded
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.evaluation.step_costs import _kl_of_steps, _Read
from pyro_vae.models import DMM, VRNN

REAL = Path(os.environ.get("PYRO_VAE_DATA", "nowhere"))


def written(folder, **changes):
    """Write rolls of 3, 1 and 2 sequences: step t of sequence i has key i + t."""
    arrays = {}
    for split, lengths in {"train": (2, 4, 1), "valid": (3,), "test": (1, 2)}.items():
        frames = np.zeros((sum(lengths), 88), np.uint8)
        keys = [i + t for i, n in enumerate(lengths) for t in range(n)]
        frames[np.arange(len(keys)), keys] = 1
        arrays[f"{split}_frames"] = np.packbits(frames, axis=1)
        arrays[f"{split}_lengths"] = np.array(lengths, np.int32)
    np.savez(folder / "jsb_chorales.npz", **{**arrays, **changes})
    return folder


def test_rolls_are_cut_where_their_lengths_say(tmp_path):
    jsb = pv.data.load("jsb", root=written(tmp_path))
    x, lengths = jsb.train["x"], jsb.train["lengths"]
    assert x.shape == (3, 4, 88) and x.dtype == torch.float32 and lengths.tolist() == [2, 4, 1]
    assert x.nonzero().tolist() == [
        [i, t, i + t] for i, n in enumerate([2, 4, 1]) for t in range(n)
    ]
    assert jsb.test["x"].shape == (2, 2, 88)
    assert repr(jsb) == "SequenceSets('jsb', train=3, valid=1, test=2, steps=13)"


@pytest.mark.parametrize("lengths", [[2, 4], [2, 4, 2], [7, 0, 0]])
def test_lengths_that_do_not_cut_the_frames_are_named(tmp_path, lengths):
    with pytest.raises(DataError, match=r"jsb_chorales\.npz: train_lengths do not cut"):
        pv.data.load("jsb", root=written(tmp_path, train_lengths=np.array(lengths, np.int32)))


def test_captions_keep_the_words_that_come_three_times(tmp_path):
    lines = {
        "train": ["A cat , a Dog."] * 1001 + ["a bird", ""],
        "test": ["A bird and a cat.", "!"],
    }
    for split, part in lines.items():
        text = gzip.compress("\n".join(part).encode())
        (tmp_path / f"coco_captions.{split}.txt.gz").write_bytes(text)
    coco = pv.data.load("coco_captions", root=tmp_path)
    assert coco.vocabulary[4:] == (",", ".", "a", "cat", "dog")
    words = [[coco.vocabulary[i] for i in row] for row in coco.test["x"].tolist()]
    assert words[0] == ["a", "<unk>", "<unk>", "a", "cat", ".", "<eos>"]
    assert words[1] == ["<unk>", "<eos>"] + ["<pad>"] * 5 and coco.test["lengths"].tolist() == [
        7,
        2,
    ]
    assert len(coco.train["x"]) == 2 and len(coco.valid["x"]) == 1000
    with pytest.raises(DataError, match=r"sequences, got binarization"):
        pv.data.load("coco_captions", binarization="static", root=tmp_path)
    (tmp_path / "coco_captions.test.txt.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"no gzip-compressed text"):
        pv.data.load("coco_captions", root=tmp_path)


def test_text_becomes_numbers_and_text_again():
    lines = ["A cat, a dog.", "a DOG", "", "the cat"]
    words = pv.data.Vocabulary.of(lines, least=2)
    assert words == ("<pad>", "<unk>", "<bos>", "<eos>", "a", "cat", "dog")
    data = words.numbers(lines, longest=4)
    assert data["x"].tolist() == [
        [4, 5, 1, 4, 3],
        [4, 6, 3, 0, 0],
        [3, 0, 0, 0, 0],
        [1, 5, 3, 0, 0],
    ]
    assert data["lengths"].tolist() == [5, 3, 1, 3]
    assert words.text(data["x"]) == ["a cat <unk> a", "a dog", "", "<unk> cat"]
    assert words.text(data["x"][:2, None, :2]) == [["a cat"], ["a dog"]]
    program = pv.models.SentenceVAE(len(words), 2, embedding=4, hidden=4)
    assert all(isinstance(text, str) for text in words.text(pv.reconstruct(program, data)))
    for wrong in ([], "a cat", [3]):
        for verb in (pv.data.Vocabulary.of, words.numbers):
            with pytest.raises((ConfigError, DataError), match="lines: got"):
                verb(wrong)
    with pytest.raises(DataError, match="comes 3 times"):
        pv.data.Vocabulary.of(lines[1:])
    for wrong in (torch.tensor([7]), torch.tensor([-1]), torch.zeros(2)):
        with pytest.raises(DataError, match="x: got"):
            words.text(wrong)
    for wrong in (["a", "b"], [*words, "cat"], "cat"):
        with pytest.raises(pv.errors.ConfigError, match="words: got"):
            pv.data.Vocabulary(wrong)


def test_batches_have_each_row_once_and_little_padding():
    torch.manual_seed(0)
    lengths = torch.randint(1, 30, (103,))
    x = torch.arange(103)[:, None].expand(103, 33).float()
    loader = pv.data.bucketed({"x": x, "lengths": lengths}, 10, widths=3, seed=1)
    epochs = [list(loader) for _ in range(2)]
    for batches in epochs:
        assert len(batches) == len(loader) == 11
        rows = torch.cat([batch["x"][:, 0] for batch in batches]).long()
        assert rows.sort().values.equal(torch.arange(103))
        assert torch.cat([batch["lengths"] for batch in batches]).equal(lengths[rows])
        assert all((batch["lengths"] <= batch["x"].shape[1]).all() for batch in batches)
        assert len({batch["x"].shape[1] for batch in batches}) <= 3
        assert sum(batch["x"].numel() for batch in batches) < 0.75 * 103 * 29
    assert not torch.equal(epochs[0][0]["x"][:, 0], epochs[1][0]["x"][:, 0])


def test_other_sequences_are_refused():
    x = torch.zeros(3, 4, 2)
    for lengths in ([0, 1, 2], [1, 2, 5]):
        with pytest.raises(DataError, match=r"expected 1 to 4"):
            pv.data.bucketed({"x": x, "lengths": torch.tensor(lengths)}, 2)
    with pytest.raises(DataError, match="got no sequences"):
        pv.data.bucketed({"x": x[:0], "lengths": torch.ones(0)}, 2)
    with pytest.raises(DataError, match=r"expected x \(N, T, \*units\) and lengths"):
        pv.data.bucketed({"x": x, "lengths": torch.tensor([1, 2])}, 2)
    for wrong in ([torch.zeros(2, 3), torch.zeros(2, 4)], [torch.zeros(2), torch.zeros(1).long()]):
        with pytest.raises(DataError, match=r"expected steps as in a tensor of shape"):
            pv.data.pad(wrong)
    with pytest.raises(DataError, match="got none"):
        pv.data.pad([])


def test_costs_per_step_are_the_three_of_the_literature():
    torch.manual_seed(0)
    lengths = torch.tensor([4, 1, 3])
    data = {"x": torch.bernoulli(torch.full((3, 4, 5), 0.3)), "lengths": lengths}
    program = DMM(5, 2, (4,), transition=4, recurrent=4)
    torch.manual_seed(1)
    bound = pv.elbo(program, data).double()
    torch.manual_seed(1)
    found = pv.per_step(program, data, likelihood_particles=400)
    assert found.bound == pytest.approx(-bound.sum().item() / 8)
    assert found.mean_of_sequences == pytest.approx(-(bound / lengths).mean().item())
    assert found.likelihood < found.bound + 3 * found.bound_stderr
    torch.manual_seed(1)
    flat = pv.per_step(program, data["x"])
    assert flat.bound == pytest.approx(flat.mean_of_sequences) and flat.likelihood is None
    for wrong in ({**data, "lengths": torch.tensor([4, 0, 3])}, {"x": data["x"]}):
        with pytest.raises(DataError):
            pv.per_step(program, wrong)

    def model(notes, bars, key):
        program.model(notes, bars)

    def guide(notes, bars, key):
        program.guide(notes, bars)

    renamed, given = pv.Program(model, guide), (data["x"], lengths, torch.ones(3))
    torch.manual_seed(1)
    assert pv.per_step(renamed, given).bound == found.bound
    given = {"notes": data["x"], "bars": lengths, "key": torch.tensor([4, 4, 4])}
    torch.manual_seed(1)
    assert pv.per_step(renamed, given, lengths="bars").bound == found.bound
    for named in (None, "notes?"):
        with pytest.raises(DataError, match=r"lengths: got .* expected .*one of bars, key\)"):
            pv.per_step(renamed, given, lengths=named)


@pytest.mark.parametrize("sites", [3, 2], ids=["of steps", "of layers"])
def test_costs_per_step_of_sites_by_number(sites):
    """KL at a draw of N(t, 1) from N(0, 1) is N(t^2 / 2, t^2): |z| < 5 for each step."""

    def run(x, lengths, shift, seen):
        with pyro.plate("data", len(x)):
            for t in range(sites):
                with pyro.poutine.mask(mask=t < lengths):
                    pyro.sample(f"z_{t}", dist.Normal(x.new_zeros(len(x)) + t * shift, 1.0))
            if seen:
                pyro.sample("x", dist.Normal(x.new_zeros(3), 1.0).to_event(1), obs=x)

    program = pv.Program(lambda x, n: run(x, n, 0, True), lambda x, n: run(x, n, 1, False))
    lengths = torch.arange(600) % 3 + 1
    torch.manual_seed(0)
    kl = pv.per_step(program, (torch.randn(600, 3), lengths)).kl
    if sites == 2:
        assert kl is None
        return
    steps, count = torch.arange(3.0), torch.tensor([600, 400, 200])
    assert ((kl - steps.square() / 2).abs() <= 5 * steps / count.sqrt() + 1e-6).all()


def test_costs_per_step_of_a_stream_are_those_of_its_sequences_together():
    """Batches that are padded to the longest of their own."""
    lengths = torch.tensor([2, 1, 2, 4, 3, 3])
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((6, 4, 5), 0.3))
    program = DMM(5, 2, (4,), transition=4, recurrent=4)
    parts = [{"x": x[:3, :2], "lengths": lengths[:3]}, {"x": x[3:], "lengths": lengths[3:]}]
    loader = DataLoader(parts, batch_size=None)
    pv.Program.of(program).read(parts[0])
    torch.manual_seed(1)
    found = pv.per_step(program, loader, likelihood_particles=3)
    torch.manual_seed(1)
    bound = torch.cat([pv.elbo(program, part) for part in parts]).double()
    likelihoods = [pv.log_likelihood(program, part, num_particles=3).log_prob for part in parts]
    kls = [_kl_of_steps(program, _Read(program, part)) for part in parts]
    assert found.bound == pytest.approx(-bound.sum().item() / 15)
    assert found.mean_of_sequences == pytest.approx(-(bound / lengths).mean().item())
    assert found.likelihood == pytest.approx(-torch.cat(likelihoods).sum().item() / 15)
    sums = torch.tensor([3.0, 2.0, 0.0, 0.0]) * torch.nn.functional.pad(kls[0], (0, 2))
    sums = sums + torch.tensor([3.0, 3.0, 3.0, 1.0]) * kls[1]
    torch.testing.assert_close(found.kl * torch.tensor([6.0, 5.0, 3.0, 1.0]), sums)
    with pytest.raises(DataError, match="an iterator, which can be read once"):
        pv.per_step(program, iter(parts))


def test_the_kl_of_steps_is_that_of_the_path_step_by_step():
    """Where the guide is the prior, a step tells nothing."""
    lengths, u = torch.tensor([4, 1, 3]).repeat(100), torch.tensor([0.0, 1.0, 0.0, -2.0])

    def states(loc):
        step = lambda z, given: dist.Normal(0.5 * z + given, 1.0).to_event(1)  # noqa: E731
        inputs = loc.reshape(1, 4, 1).expand(300, 4, 1)
        return Chain(step, torch.zeros(1), 4, inputs=inputs, lengths=lengths)

    def model(x, lengths):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", states(0 * u))
            pyro.sample("x", Padded(dist.Normal(z, 1.0), lengths, 1), obs=x)

    def guide(x, lengths):
        with pyro.plate("data", len(x)):
            pyro.sample("z", states(u))

    torch.manual_seed(0)
    data = {"x": torch.zeros(300, 4, 1), "lengths": lengths}
    kl = pv.per_step(pv.Program(model, guide), data).kl
    assert kl.shape == (4,) and kl[0] == kl[2] == 0
    # u^2 / 2, with a deviation of |u| over the root of the sequences that have the step.
    error = (kl - u**2 / 2) / (u.abs() / torch.tensor([300.0, 200, 200, 100]).sqrt())
    assert error[[1, 3]].abs().max() < 5  # false alarm 1e-6
    assert pv.per_step(pv.models.VAE((4, 1), 2, (4,)), torch.zeros(3, 4, 1)).kl is None

    def skewed(x, lengths):
        with pyro.plate("data", len(x)):
            whole = dist.Normal(torch.zeros(4, 1), 1.0).to_event(2)
            pyro.sample(
                "z", dist.TransformedDistribution(whole, [AffineTransform(u[:, None], 2.0)])
            )

    with pytest.warns(UserWarning, match="'z': the model masks it for some data"):
        answer = pv.per_step(pv.Program(model, skewed), data)
    assert answer.kl is None  # one density of a path


GUIDES = {  # at step 1 of 4: which steps of x a factor depends on, and whether on the state before
    "smoothing": ([False, True, True, True], True),
    "filtering": ([True, True, False, False], True),
    "mean_field": ([True, True, True, True], False),
    "filtering_mean_field": ([True, True, False, False], False),
}


@pytest.mark.parametrize(("guide", "expected"), GUIDES.items())
def test_a_guide_of_states_reads_what_its_name_says(guide, expected):
    """By the gradient of the density of one step."""
    torch.manual_seed(0)
    program = DMM(5, 2, (4,), transition=4, recurrent=4, guide=guide)
    x, path = torch.rand(1, 4, 5, requires_grad=True), torch.randn(1, 4, 2, requires_grad=True)
    q = program.encoder(x)
    if isinstance(q, Chain):
        one = q.step_log_prob(path)[0, 1]
    else:
        one = q.base_dist.log_prob(path)[0, 1].sum()
    seen, before = torch.autograd.grad(one, (x, path))
    assert (seen[0].abs().sum(-1) > 0).tolist() == expected[0]
    assert (before[0].abs().sum(-1) > 0).tolist() == [expected[1], True, False, False]


@pytest.mark.parametrize(("guide", "flows"), [*((guide, 0) for guide in GUIDES), ("smoothing", 1)])
def test_a_padded_batch_of_states_is_its_sequences_one_by_one(guide, flows):
    """Loss and gradients at given paths, through the networks that read the sequences."""
    torch.manual_seed(0)
    program = DMM(5, 2, (4,), transition=4, recurrent=4, guide=guide, num_flows=flows).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    lengths = torch.tensor([4, 1, 3])
    x = torch.bernoulli(torch.full((3, 4, 5), 0.3, dtype=torch.float64))
    x[torch.arange(4) >= lengths[:, None]] = math.nan
    z = program.encoder(x, lengths).sample().detach()

    def loss(x, lengths, z):
        each = Padded(program.decoder(z), lengths) if lengths is not None else program.decoder(z)
        seen = each.log_prob(x) if lengths is not None else each.to_event(1).log_prob(x)
        prior = program.chain(x.shape[1], lengths).log_prob(z)
        return (seen + prior - program.encoder(x, lengths).log_prob(z)).sum()

    whole = loss(x, lengths, z)
    alone = sum(loss(x[i, None, :n], None, z[i, None, :n]) for i, n in enumerate(lengths.tolist()))
    weights = [each for each in program.parameters() if each.requires_grad]
    ours, theirs = (torch.autograd.grad(each, weights) for each in (whole, alone))
    torch.testing.assert_close((whole, *ours), (alone, *theirs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("padded", [True, False])
def test_the_kl_of_steps_adds_up_to_that_of_the_path(guide, padded):
    torch.manual_seed(0)
    x, lengths = torch.bernoulli(torch.full((3, 4, 5), 0.3)), torch.tensor([4, 1, 3])
    data = {"x": x, "lengths": lengths} if padded else x
    program = pv.Program.of(DMM(5, 2, (4,), transition=4, recurrent=4, guide=guide))
    each = lengths if padded else torch.full((3,), 4)
    torch.manual_seed(1)
    kl = _kl_of_steps(program, _Read(program, data))
    torch.manual_seed(1)
    with torch.no_grad(), program.running():
        terms = program.joint(program.adapt(data)).terms()
    counts = (each[:, None] >= torch.arange(1, 5)).sum(0)
    whole = (terms.log_q["z"] - terms.log_p["z"]).sum()
    torch.testing.assert_close((kl * counts).sum().float(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [DMM, VRNN])
def test_a_continuation_goes_on_from_what_each_sequence_holds(model, monkeypatch):
    """With draws at their means: a padded batch is its sequences one by one, step by step."""
    torch.manual_seed(0)
    program = model(3, 2, (4,), recurrent=4).double()
    for name in ("rsample", "sample"):
        monkeypatch.setattr(
            dist.Normal, name, lambda self, shape=(): self.loc.expand(self._extended_shape(shape))
        )
    struck = lambda self, shape=(): (self.probs > 0.5).double()  # noqa: E731
    monkeypatch.setattr(dist.Bernoulli, "sample", struck)
    lengths = torch.tensor([5, 2, 0, 3])
    x = torch.bernoulli(torch.full((4, 5, 3), 0.5)).double()
    x[1, 2:] = torch.nan  # behind its end
    found = program.continuation(x, 4, lengths, mean=True)
    assert found["lengths"].tolist() == [9, 6, 4, 7] and found["x"].shape == (4, 9, 3)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(found["x"][row, :length], x[row, :length])
        assert (found["x"][row, length + 4 :] == 0).all()
        if length:
            alone = program.continuation(x[row : row + 1, :length], 4, mean=True)["x"][0]
            torch.testing.assert_close(found["x"][row, : length + 4], alone)
    with torch.no_grad():
        if model is DMM:
            z = program.encoder(x[:1]).sample()[0, -1]
            for step in range(5, 9):
                z = program.transition(z).base_dist.loc
                torch.testing.assert_close(found["x"][0, step], program.decoder(z).mean)
        else:  # the empty sequence begins as the memory does
            h = program.memory.start
            z = program.prior(h).base_dist.loc
            torch.testing.assert_close(found["x"][2, 0], program.decoder(torch.cat([z, h])).mean)
    with pytest.raises(pv.errors.ConfigError, match="lengths: got 6"):
        program.continuation(x, 4, lengths + 1)
    for odd, match in ((x, "not finite"), (x[2:] + 2, r"in row 0, step 0, expected .*Boolean")):
        with pytest.raises(DataError, match=match):
            program.continuation(odd, 4)


@pytest.mark.parametrize("model", [DMM, VRNN])
def test_paths_of_unequal_length_have_no_information_to_compare(model):
    """Densities of five steps and of one are in other units; those of equal steps are compared."""
    torch.manual_seed(0)
    x, lengths = torch.bernoulli(torch.full((40, 5, 3), 0.4)), torch.randint(1, 6, (40,))
    program = model(3, 2, (4,), recurrent=4)
    assert pv.diagnose(program, {"x": x, "lengths": lengths}).information is None
    found = pv.diagnose(program, x).information
    assert -5 * found.stderr < found.lower < 3.7  # log 40


@pytest.mark.parametrize("model", [DMM, VRNN])
def test_a_list_of_batches_of_unequal_steps_is_one_with_lengths(model):
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((7, 5, 3), 0.4))
    lengths = torch.tensor([3, 1, 3, 5, 2, 5, 4])
    x = x * (torch.arange(5) < lengths[:, None]).unsqueeze(-1)
    parts = [(x[:3, :3], lengths[:3]), (x[3:], lengths[3:])]
    whole = [(part,) for part, _ in parts]
    program = model(3, 2, (4,), recurrent=4)
    for data, exact in (
        (parts, lengths),
        ([{"x": each, "lengths": own.numpy()} for each, own in parts], lengths),
        ([each for (each,) in whole], torch.tensor([3, 3, 3, 5, 5, 5, 5])),
        (whole, torch.tensor([3, 3, 3, 5, 5, 5, 5])),
    ):
        read = program.reads(data)
        assert torch.equal(read["x"], x) and torch.equal(read["lengths"], exact)
    torch.manual_seed(1)
    found = pv.elbo(program, parts)
    torch.manual_seed(1)
    torch.testing.assert_close(found, pv.elbo(program, {"x": x, "lengths": lengths}))
    assert pv.fit(program, parts, epochs=1, batch_size=4).steps == 2
    with pytest.raises(
        DataError, match=r"'x' has data of shape \(3, 3\) and \(5, 3\).*pv.data.pad"
    ):
        pv.diagnose(program, iter([{"x": each} for (each,) in whole]))


def test_a_sequence_lacks_its_holes_and_not_what_would_lie_behind_its_end():
    """Given the code of the prior, a hole is filled with its mean; what stands elsewhere stays."""

    def model(x, lengths, there):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Chain(lambda z: dist.Normal(0 * z, 1.0).to_event(1), start, 4))
            rolls = dist.Normal(0 * z + 0.5, 1.0).mask(there.unsqueeze(-1))
            pyro.sample("x", Padded(rolls, lengths, 1), obs=x)

    def guide(x, lengths, there):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 4, 1), 1.0).to_event(2))

    start, lengths = torch.zeros(1), torch.tensor([4, 2, 1])
    x, there = torch.full((3, 4, 1), 7.0), torch.ones(3, 4, dtype=torch.bool)
    there[0, 2] = there[1, 3] = False  # the second lies behind an end
    found = pv.impute(pv.Program(model, guide), (x, lengths, there), num_particles=4)
    assert found.missing.nonzero().tolist() == [[0, 2, 0]]
    x[0, 2] = 0.5
    torch.testing.assert_close(found.values, x)
    rolls = {"x": torch.zeros(3, 4, 5), "lengths": lengths}
    assert not pv.impute(DMM(5, 2, (4,)), rolls, num_particles=2).missing.any()


@pytest.mark.parametrize("steps", [(4, 2), (4, 4)])
def test_a_list_of_single_sequences_is_no_batch(steps):
    """Two of them would be taken for sequences and their lengths."""
    rolls, words = [torch.zeros(n, 5) for n in steps], [torch.full((n,), 4) for n in steps]
    for program, data in ((DMM(5, 2, (4,)), rolls), (VRNN(5, 2, (4,)), rolls)):
        with pytest.raises(DataError, match=r"list of 2 sequences.*pv\.data\.pad"):
            pv.elbo(program, data)
    with pytest.raises(DataError, match=r"list of 2 sequences.*pv\.data\.pad"):
        pv.elbo(pv.models.SentenceLM(6), words)
    for text in ("a cat", ["a cat"], ("a cat", "a dog")):
        with pytest.raises(DataError, match=r"got text.*pv\.data\.Vocabulary\.of"):
            pv.elbo(pv.models.SentenceVAE(6), text)


def test_a_program_takes_batches_of_unequal_steps():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 9, 2, 8, 9, 1, 4, 9])
    x = torch.bernoulli(torch.full((8, 9, 5), 0.3))
    loader = pv.data.bucketed({"x": x, "lengths": lengths}, 2, widths=2)
    program = DMM(5, 2, (4,), transition=4, recurrent=4)
    run = pv.fit(program, loader, epochs=3, compile="trace", progress=False)
    assert run.compiled == "graph" and len(run.history["epoch"]) == 3
    for wrong, message in ((10, "from 0 to the 9 steps"), (-1, "from 0 to the 9 steps")):
        with pytest.raises(pv.errors.ConfigError, match=message):
            pv.elbo(DMM(5, 2), {"x": x, "lengths": torch.full((8,), wrong)})
    with pytest.raises(DataError, match=r"expected sequences \(B, T, 5\)"):
        pv.elbo(DMM(5, 2), torch.zeros(3, 5))
    for odd in (lengths > 3, lengths[:, None], 9):
        with pytest.raises(DataError, match=r"lengths: got .*expected how many steps.*\(8,\)"):
            pv.elbo(DMM(5, 2), {"x": x, "lengths": odd})
    with pytest.raises(DataError, match="of some steps"):
        pv.elbo(VRNN(5, 2), x[:, :0])
    with pytest.raises(DataError, match=r"got PackedSequence.*pad_packed_sequence"):
        pv.elbo(VRNN(5, 2), pack_sequence(list(x)))
    for odd in ([x], {"x": x, "lengths": None}):
        with pytest.raises(DataError, match="give x alone where"):
            pv.per_step(program, odd)
    assert math.isnan(pv.per_step(program, x[:1]).bound_stderr)


@pytest.mark.parametrize("wrong", [12.0, -1.0, 2.5])
def test_a_length_that_is_none_is_refused_wherever_it_stands(wrong):
    """In a row that no look at the first ones sees, in data, in a stream, and by `fit`."""
    torch.manual_seed(0)
    x, lengths = torch.bernoulli(torch.full((40, 9, 5), 0.4)), torch.randint(1, 10, (40,)).float()
    lengths[35] = wrong
    program, message = DMM(5, 2, (4,), transition=4, recurrent=4), rf"got {wrong}.*to the 9 steps"
    data, rows = {"x": x, "lengths": lengths}, TensorDataset(x, lengths)
    for verb in (
        lambda: pv.elbo(program, data, batch_size=8),
        lambda: pv.encode(program, (x, lengths.numpy())),
        lambda: pv.elbo(program, DataLoader(rows, batch_size=8)),
        lambda: pv.fit(program, data, epochs=1, batch_size=8, compile="trace", progress=False),
        lambda: pv.fit(program, DataLoader(rows, 8), epochs=1, compile=False, progress=False),
    ):
        with pytest.raises(pv.errors.ConfigError, match=message):
            verb()


@pytest.mark.filterwarnings("ignore:refine")  # short chains
@pytest.mark.parametrize("model", [DMM, VRNN])
def test_posterior_draws_end_where_their_sequences_do(model):
    torch.manual_seed(0)
    options = {"transition": 4} if model is DMM else {"features": 3}
    program = model(5, 2, (4,), recurrent=4, **options)
    lengths = torch.tensor([2, 3])
    data = {"x": torch.bernoulli(torch.full((2, 3, 5), 0.3)), "lengths": lengths}
    found = pv.refine(program, data, pv.HMC(num_draws=3, warmup=2, chains=2))
    inside = (torch.arange(3) < lengths[:, None])[..., None].expand(2, 3, 2)
    assert (found.samples["z"] != 0).all((0, 1)).equal(inside)
    assert (found.scale > 0).equal(inside)


@pytest.mark.data
@pytest.mark.skipif(
    not (REAL / "jsb_chorales.npz").is_file(), reason="$PYRO_VAE_DATA has no jsb_chorales.npz"
)
def test_the_real_sequences():
    jsb, coco = pv.data.load("jsb"), pv.data.load("coco_captions")
    steps = [int(part["lengths"].sum()) for part in (jsb.train, jsb.valid, jsb.test)]
    assert steps == [13_807, 4602, 4725] and jsb.test["x"].shape == (77, 160, 88)
    assert len(coco.vocabulary) == 1913 and int(coco.test["lengths"].sum()) == 122_428
    assert int(coco.train["lengths"].sum() + coco.valid["lengths"].sum()) == 123_911
