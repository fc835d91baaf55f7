"""What each private name of PyTorch stands for: a release that moves one fails here first."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import pyro_vae
from pyro_vae import torch_private as private

aten = torch.ops.aten
ROOT = Path(pyro_vae.__file__).parent
OTHERS = {p: p.read_text() for p in ROOT.rglob("*.py") if p.name != "torch_private.py"}
PRIVATE = (
    r"^\s*(?:from|import) torch[\w.]*\._[a-z].*",
    r"^\s*from torch\b.* import _.*",
    r"\b(?:torch|torch_dist)(?:\.\w+)*\._[a-zA-Z]\w*",
    r"\w+\._(?:schema|cdata|overloadname|backward_hooks)\b",
    r"(?<!self)\._version\b(?! import)",
)


def test_no_other_module_names_one():
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in OTHERS.items()
        for pattern in PRIVATE
        for name in re.findall(pattern, text, re.MULTILINE)
    }
    assert not found


def test_every_name_is_listed_and_used():
    text = "".join(OTHERS.values())
    words = set(re.findall(r"\w+", text))
    assert {name for name in private.__all__ if name not in words} == set()
    assert all(hasattr(private, name) for name in private.__all__)


def test_versions_count_writes():
    x = torch.zeros(3)
    before = private.version_of(x)
    x.view(3, 1).add_(1)  # a view counts for what it looks at
    assert private.version_of(x) == before + 1
    with torch.inference_mode():
        assert private.version_of(torch.zeros(1)) == 0


def test_storages_are_told_apart_without_data():
    x, y = torch.zeros(4, device="meta"), torch.zeros(4, device="meta")
    assert private.storage_address(x) == private.storage_address(x[1:])
    assert private.storage_address(x) != private.storage_address(y)


def test_a_tensor_that_overlaps_itself():
    assert private.overlaps_itself(torch.zeros(1).expand(3))
    assert not private.overlaps_itself(torch.zeros(3))


def test_hooks_on_gradients():
    parameter = nn.Parameter(torch.ones(2))
    assert not private.gradient_hooks(parameter)
    assert not private.has_gradient_hooks(parameter)
    handle = parameter.register_hook(lambda grad: 2 * grad)
    assert len(private.gradient_hooks(parameter)) == 1
    assert private.has_gradient_hooks(parameter)
    handle.remove()
    assert not private.has_gradient_hooks(parameter)
    parameter.register_post_accumulate_grad_hook(lambda _: None)
    assert private.has_gradient_hooks(parameter)


def test_schemas_tell_what_an_operator_writes():
    add, add_ = aten.add.Tensor, aten.add_.Tensor
    assert isinstance(add, private.OpOverload)
    assert private.schema(add).name == "aten::add"
    assert (private.schema(add).is_mutable, private.schema(add_).is_mutable) == (False, True)
    assert private.overload_name(add) == "Tensor"


@pytest.mark.parametrize("name", ["add", "linear", "clamp_min_"])
def test_operators_have_c_functions(name):
    assert any(hasattr(home, name) for home in private.native_functions())


@pytest.mark.parametrize("argument", ["meta", torch.device("meta"), torch.zeros(1, device="meta")])
def test_the_device_that_to_is_given(argument):
    assert private.device_of_to(argument) == torch.device("meta")
    assert private.device_of_to(torch.float64) is None


def test_optimizers_that_skip_a_step_on_the_device():
    weights = [nn.Parameter(torch.ones(1))]
    assert private.skips_by_found_inf(torch.optim.Adam(weights, fused=True))
    assert not private.skips_by_found_inf(torch.optim.Rprop(weights))


def test_whether_distributions_validate():
    assert private.validates_values()
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        assert not private.validates_values()
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


def test_kernels_over_lists():
    ours, theirs = [torch.ones(2), torch.zeros(1)], [torch.full((2,), 3.0), torch.ones(1)]
    private.foreach_lerp_(ours, theirs, 0.5)
    assert [x.tolist() for x in ours] == [[2, 2], [0.5]]
    private.foreach_copy_(ours, theirs)
    assert [x.tolist() for x in ours] == [[3, 3], [1]]
    assert [round(float(n), 4) for n in private.foreach_norm(ours)] == [4.2426, 1]


def test_the_fused_kernel_is_adam():
    torch.manual_seed(0)
    weight, grad = nn.Parameter(torch.randn(3)), torch.randn(3)
    expected = nn.Parameter(weight.detach().clone())
    expected.grad = grad.clone()
    torch.optim.Adam([expected], lr=0.1, fused=True).step()
    options = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0, "eps": 1e-8}
    state = [torch.zeros(3)], [torch.zeros(3)], [], [torch.ones(())]
    with torch.no_grad():
        private.fused_adam_(
            [weight], [grad], *state, lr=0.1, **options, amsgrad=False, maximize=False
        )
    assert torch.equal(weight, expected)


def test_structures_keep_the_user_s_classes():
    leaves, structure = private.pytree.tree_flatten({"a": [1, (2, 3)]})
    assert leaves == [1, 2, 3]
    assert private.pytree.tree_unflatten([4, 5, 6], structure) == {"a": [4, (5, 6)]}
    again = private.pytree.treespec_loads(private.pytree.treespec_dumps(structure))
    assert again == structure


def test_a_mode_sees_every_operator():
    class Names(private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    with Names():
        torch.ones(2).sum()
    assert seen == [aten.ones.default, aten.sum.default]


def test_a_mode_of_functions_is_taken_off_from_below_another():
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(self)
            return function(*args, **kwargs or {})

    lowest, below, above = Mode(), Mode(), Mode()
    with lowest:
        below.__enter__()
        with above:
            torch.ones(()).neg()
            assert set(seen) == {lowest, below, above}
            seen.clear()
            private.leave_function_mode(below)
            torch.ones(()).neg()
            assert set(seen) == {lowest, above}


def test_modes_and_levels_are_put_back():
    before = private.mode_stacks()
    private.TorchDispatchMode().__enter__()
    torch._C._functorch._vmap_increment_nesting(2, "error")
    assert private.mode_stacks()[2:] != before[2:]
    private.put_back_mode_stacks(before)
    assert private.mode_stacks() == before


def test_a_tracer_describes_nodes_in_the_context_s_mode():
    mode = private.FakeTensorMode(allow_fallback_kernels=True)
    with private.tracing(private.TracingContext(mode)):
        graph = make_fx(lambda x: x.exp().sum())(torch.ones(3))
    notes = [n.meta["val"] for n in graph.graph.nodes if n.op == "call_function"]
    assert [tuple(note.shape) for note in notes] == [(3,), ()]
    assert {note.fake_mode for note in notes} == {mode}


def test_modules_keep_parts_and_hooks_where_we_look():
    part = nn.BatchNorm1d(2)
    assert isinstance(part, private.BatchNorm)
    assert all(isinstance(vars(part)[name], dict) for name in private.MODULE_TABLES)
    part.register_forward_hook(lambda *_: None)
    part.register_full_backward_hook(lambda *_: None)
    assert [len(vars(part)[name]) for name in private.MODULE_HOOKS] == [1, 0, 1, 0]


def test_the_compiler_has_what_we_call():
    assert callable(private.compiler("compile_fx").compile_fx)
    assert callable(private.compiler().standalone_compile)
    assert callable(private.compiler().CompiledArtifact.load)
    assert callable(private.compiler("output_code").CompiledFxGraph.__call__)
