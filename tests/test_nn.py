"""Networks: shapes, leading dims against a loop, initial values, errors."""

import pytest
import torch
from torch import nn

from pyro_vae.errors import ConfigError, DataError
from pyro_vae.nn import (
    ACTIVATIONS,
    GRU,
    MLP,
    BatchNorm,
    ConvCritic,
    ConvDecoder,
    ConvEncoder,
    OneHot,
    Transformer,
)

EXACT = {"rtol": 1e-10, "atol": 1e-12}

NETWORKS = {
    "mlp": lambda: MLP((1, 8, 8), 5, (7, 6)),
    "mlp_to_image": lambda: MLP(5, (2, 4, 3), (7,), activation="tanh"),
    "affine": lambda: MLP(3, 2, ()),
    "conv_encoder": lambda: ConvEncoder((2, 7, 9), (3, 2), (4, 5)),
    "conv_decoder": lambda: ConvDecoder((3, 2), (2, 7, 9), (5, 4)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_leading_dims_equal_a_loop(name):
    net = NETWORKS[name]().double()
    x = torch.randn(3, 2, *net.in_shape, dtype=torch.float64)
    y = net(x)
    assert y.shape == (3, 2, *net.out_shape)
    loop = torch.stack([torch.stack([net(one) for one in row]) for row in x])
    torch.testing.assert_close(y, loop, **EXACT)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient_and_meta_runs(name):
    net = NETWORKS[name]()
    net(torch.randn(4, *net.in_shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    net = net.to("meta")
    assert net(torch.empty(2, 4, *net.in_shape, device="meta")).shape == (2, 4, *net.out_shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_empty_batch(name):
    net = NETWORKS[name]()
    assert net(torch.empty(0, *net.in_shape)).shape == (0, *net.out_shape)


@pytest.mark.parametrize("plane", [(28, 28), (8, 8), (7, 7), (5, 6), (1, 3)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_convolutions_restore_the_image_size(plane, layers):
    shape, channels = (1, *plane), (4, 3, 2)[:layers]
    code = ConvEncoder(shape, 6, channels)(torch.zeros(2, *shape))
    assert code.shape == (2, 6)
    assert ConvDecoder(6, shape, channels[::-1])(code).shape == (2, *shape)


def test_batch_norm_normalises_over_all_leading_dims():
    net = MLP(3, 2, (4,), batch_norm=True).double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(net(x), net(x.reshape(30, 3)).reshape(5, 6, 2), **EXACT)
    assert net.hidden[1].running_mean.abs().sum() > 0


def test_a_lone_row_is_normalised_by_running_moments_and_moves_none():
    norm = BatchNorm(3)
    norm(torch.randn(20, 3))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    found = norm(torch.ones(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.equal(found, norm.eval()(torch.ones(1, 3)))


def test_batch_norm_checks_its_arguments():
    numbers = ({"eps": -1.0}, {"momentum": 2.0}, {"num_features": 0})
    for wrong in (*numbers, {"dtype": torch.int64}, {"device": "abacus"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            BatchNorm(**{"num_features": 3, **wrong})
    assert BatchNorm(3, momentum=None, affine=False).weight is None


def test_batch_norm_takes_what_that_of_torch_takes():
    x = torch.arange(6.0).reshape(2, 3) ** 2
    given = {"track_running_stats": False, "device": "cpu", "dtype": torch.float64}
    for args, kwargs in [
        ((3, 1.0, 0.5, False), given),
        ((3, 0.1), {"device": torch.device("cpu")}),
    ]:
        mine, theirs = BatchNorm(*args, **kwargs), torch.nn.BatchNorm1d(*args, **kwargs)
        assert repr(mine).partition("(")[2] == repr(theirs).partition("(")[2]
        for _ in range(2):
            y = x.to(kwargs.get("dtype", torch.float32))
            assert torch.equal(mine(y), theirs(y))
            mine, theirs = mine.eval(), theirs.eval()
        assert mine.state_dict().keys() == theirs.state_dict().keys()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm(3, track_running_stats=False)(x[:1])
    assert BatchNorm(3, bias=False).bias is None


def test_dropout_acts_in_training_only():
    net, x = MLP(3, 2, (50,), dropout=0.5), torch.ones(1, 3)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_mlp_is_the_formula():
    net, x = MLP(3, 2, (4,), activation="tanh").double(), torch.randn(5, 3, dtype=torch.float64)
    first, last = net.hidden[0], net.output
    expected = (x @ first.weight.T + first.bias).tanh() @ last.weight.T + last.bias
    torch.testing.assert_close(net(x), expected, **EXACT)


def test_tanh_starts_glorot_uniform_and_others_as_torch_does():
    net = MLP(300, 200, (), activation="tanh")
    bound = (6 / 500) ** 0.5
    assert bound * 0.99 < net.output.weight.abs().max() <= bound
    assert net.output.bias.count_nonzero() == 0
    torch.manual_seed(3)
    net = MLP(3, 2, ())
    torch.manual_seed(3)
    assert torch.equal(net.output.weight, nn.Linear(3, 2).weight)


def test_output_bias():
    bias = torch.randn(2, 3, 4)
    mlp, conv = MLP(5, (2, 3, 4)), ConvDecoder(5, (2, 3, 4), (6,))
    mlp.set_output_bias(bias)
    conv.set_output_bias(bias)
    nn.init.zeros_(mlp.output.weight)
    nn.init.zeros_(conv.convolutions[-1].weight)
    assert torch.equal(mlp(torch.ones(5)), bias)
    mean = bias.mean((1, 2), keepdim=True).expand(2, 3, 4)
    torch.testing.assert_close(conv(torch.ones(5)), mean)


def test_the_callers_list_is_not_changed():
    hidden, channels = [7, 6], [4, 5]
    MLP(3, 2, hidden)
    ConvEncoder((1, 8, 8), 2, channels)
    ConvDecoder(2, (1, 8, 8), channels)
    assert hidden == [7, 6]
    assert channels == [4, 5]


def test_one_hot_is_class_major():
    x = torch.randint(3, (5, 2, 4, 4))
    hot = OneHot(3, 3)(x)
    expected = nn.functional.one_hot(x, 3).permute(0, 4, 1, 2, 3).flatten(1, 2).to(hot.dtype)
    assert torch.equal(hot, expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    assert MLP(3, 2, (4,), activation=name)(torch.ones(3)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(3, 2, activation="gelu6"), "use one of relu"),
        (lambda: MLP(3, 2, (), activation="gelu6"), "use one of relu"),
        (lambda: MLP(0, 2), "in_shape: got 0"),
        (lambda: MLP(3, 2.0), "out_shape: got 2.0"),
        (lambda: MLP(True, 2), "in_shape: got True"),
        (lambda: MLP((), 2), "empty"),
        (lambda: MLP(3, 2, (4, -1)), r"hidden\[1\]: got -1"),
        (lambda: MLP(3, 2, 400), "hidden: got 400"),
        (lambda: MLP(3, 2, "400"), "hidden: got '400'"),
        (lambda: MLP(3, 2, dropout=1.0), "dropout: got 1.0"),
        (lambda: ConvEncoder((28, 28), 2), r"\(C, H, W\)"),
        (lambda: ConvDecoder(2, 784), r"\(C, H, W\)"),
        (lambda: ConvEncoder((1, 8, 8), 2, ()), "channels"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_wrong_data_shape_says_what_was_expected():
    with pytest.raises(DataError, match=r"\(4, 783\); expected \(\*, 784\)"):
        MLP(784, 2)(torch.zeros(4, 783))
    with pytest.raises(DataError, match=r"expected \(\*, 1, 8, 8\)"):
        ConvEncoder((1, 8, 8), 2)(torch.zeros(8, 8))


def test_a_gru_goes_on_from_a_state():
    torch.manual_seed(0)
    gru, x = GRU(3, 4), torch.randn(2, 5, 3)
    whole = gru(x)
    torch.testing.assert_close(gru(x[:, 2:], start=whole[:, 1]), whole[:, 2:])
    torch.testing.assert_close(gru.step(whole[:, 1], x[:, 2]), whole[:, 2])
    with pytest.raises(DataError, match=r"start: got .* expected shape \(2, 4\)"):
        gru(x, start=torch.zeros(4))
    with pytest.raises(DataError, match="expected as many"):
        gru.step(torch.zeros(3, 4), x[:, 0])


def test_steps_far_out_have_places_of_their_own_in_short_floats():
    net, zeros = Transformer(2, 8, depth=1), torch.zeros(1, 600, 2)
    net.blocks = torch.nn.ModuleList()
    far, near = net(zeros), net.bfloat16()(zeros.bfloat16())
    torch.testing.assert_close(near.float(), far, rtol=0.0, atol=0.05)


def test_a_critic_of_no_rows_has_no_logits():
    assert ConvCritic((1, 8, 8), (4, 4))(torch.zeros(0, 1, 8, 8)).shape[0] == 0
