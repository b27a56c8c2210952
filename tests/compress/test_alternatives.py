"""What a user would pick instead of compression: autocast, recomputation and copies in host memory."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actbench
from actbench.compress import Compression, Ledger, compress, run_layer
from actbench.compress.offload import Offload
from actbench.compress.rules import Rules
from actbench.errors import SchemeError, UsageError
from actbench.models import Architecture, Network, adjacency_of
from actbench.models.network import Model
from actbench.scheme import Scheme
from actbench.trace import Subject, require_calls
from actbench.training import recipe_for
from tests.by_hand.operations import operations, predict_saved_bytes

NODES, FEATURES, CLASSES = 60, 16, 5


def graph(model: Model) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.unique(torch.randint(NODES, (2, 300), generator=generator), dim=1)
    return torch.randn(NODES, FEATURES, generator=generator), adjacency_of(model, edge_index, NODES)


def resident(network: nn.Module, *graph: Tensor) -> list[Tensor]:
    return [*graph, *network.parameters(), *network.buffers()]


def context(scheme: str, kept: list[Tensor]) -> Compression:
    """`compress(scheme)`, where offload takes the CPU for a device whose tensors it moves."""
    if scheme == "offload":
        return Compression(Rules(Scheme.parse(scheme), 0), Offload(kept, source="cpu"))
    return actbench.compress(scheme, seed=0)


def train(architecture: Architecture, scheme: str, steps: int = 3) -> list[Tensor]:
    """Logits and gradients of every step, the state after them, and torch's next random numbers."""
    torch.manual_seed(7)
    network = Network(architecture, FEATURES, CLASSES)
    x, adjacency = graph(architecture.model)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    compression = context(scheme, resident(network, x, adjacency))
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        with compression:
            logits = network(x, adjacency)
        logits.square().mean().backward()
        optimizer.step()
        found += [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
    return [*found, *network.state_dict().values(), torch.rand(3)]


@pytest.mark.parametrize("scheme", ["checkpoint", "offload"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("model", ["sage", "gcn"])
def test_training_is_fp32s_bit_for_bit(model: Model, dropout: float, batch_norm: bool, scheme: str) -> None:
    """Gradients, running statistics, their count of batches and the generator included."""
    architecture = Architecture(model, 3, 24, dropout, batch_norm)
    for one, other in zip(train(architecture, scheme), train(architecture, "fp32"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4/linear2:bits=32/batch_norm1:block=7"])
def test_first_logits_of_what_quantizes_are_fp32s_bit_for_bit(scheme: str) -> None:
    architecture = Architecture("sage", 3, 24, 0.4, True)
    assert torch.equal(train(architecture, scheme, 1)[0], train(architecture, "fp32", 1)[0])


def test_a_layer_is_recomputed_again_for_a_graph_that_is_retained() -> None:
    layer = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
    x = torch.randn(9, 4, requires_grad=True)
    with actbench.compress("checkpoint"):
        out = actbench.run_layer(layer, layer, x)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    first, second = (torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert bool(first.any())
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_a_layer_is_run_as_it_is_without_gradients_and_under_other_schemes() -> None:
    layer, x = nn.Linear(4, 8), torch.randn(9, 4)
    with Ledger([x, *layer.parameters()]) as ledger:
        with torch.no_grad(), actbench.compress("checkpoint"):
            assert torch.equal(actbench.run_layer(layer, layer, x), layer(x))
        with actbench.compress("fp32"):
            out = actbench.run_layer(layer, layer, x)
    assert ledger.total_bytes == 0
    assert out.requires_grad


def test_checkpoint_keeps_the_inputs_of_layers_and_a_generators_state() -> None:
    network = Network(Architecture("sage", 3, 24, 0.4, True), FEATURES, CLASSES)
    x, adjacency = graph("sage")
    with actbench.compress("checkpoint"), Ledger(resident(network, x, adjacency)) as ledger:
        out = network(x, adjacency)
    assert [(e.operation, e.call, e.dtype, e.saved_bytes) for e in ledger.entries] == [
        ("layer", 1, "uint8", 5056),
        ("layer", 2, "uint8", 5056),
        ("layer", 2, "float32", NODES * 24 * 4),
        ("layer", 3, "uint8", 5056),
        ("layer", 3, "float32", NODES * 24 * 4),
    ]
    assert out.requires_grad


@pytest.mark.parametrize(("scheme", "says"), [("checkpoint", "found no layer"), ("offload", "found nothing on a GPU")])
def test_a_scheme_that_found_nothing_to_do_says_so(scheme: str, says: str) -> None:
    linear = nn.Linear(3, 2)
    with pytest.raises(UsageError, match=says), actbench.compress(scheme):
        linear(torch.randn(4, 3))
    with torch.no_grad(), actbench.compress(scheme):
        linear(torch.randn(4, 3))
    with pytest.raises(ZeroDivisionError), actbench.compress(scheme):
        raise ZeroDivisionError
    with Ledger() as ledger:
        out = linear(torch.randn(4, 3))
    assert ledger.total_bytes == 48
    assert out.requires_grad


def test_offload_leaves_nothing_but_what_is_resident_and_frees_the_host_in_backward() -> None:
    network = Network(Architecture("gcn", 3, 24, 0.4, True), FEATURES, CLASSES)
    x, adjacency = graph("gcn")
    stays = resident(network, x, adjacency)
    with actbench.compress("fp32"), Ledger(stays) as fp32:
        stock = network(x, adjacency)
    stock.sum().backward()
    compression = context("offload", stays)
    assert compression.offload is not None
    for _ in range(2):
        with compression, Ledger(stays) as ledger:
            out = network(x, adjacency)
        assert ledger.total_bytes == 0
        assert compression.offload.host_bytes == fp32.total_bytes
        out.sum().backward()
        assert compression.offload.host_bytes == 0


def test_without_a_ledger_offload_frees_what_it_copied() -> None:
    """An operation's own output, which it keeps, would else live on in a cycle."""
    gc.disable()
    try:
        x = torch.randn(50, requires_grad=True)
        offload = Offload([x], source="cpu")
        with offload:
            out = x.exp().sin().exp()
        # The first result, which the sine reads too, and the last.
        assert offload.host_bytes == 2 * 200
        del out
        assert offload.host_bytes == 0
    finally:
        gc.enable()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda y: y.t(),
    "part": lambda y: y[3:7, 1:5],
    "strided": lambda y: y[::2, ::3],
    "expanded": lambda y: y[:1].expand(8, -1),
    "another dtype": lambda y: y.to(torch.float64),
    "whole": lambda y: y,
    "no elements": lambda y: y[:0],
    "a scalar": lambda y: y.sum(),
    "lazily negated": lambda y: torch.complex(y, y).conj().imag,
}


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_comes_back_as_it_was(name: str) -> None:
    x = torch.randn(8, 8)
    results: list[Any] = []
    for offload in (None, Offload(source="cpu")):
        leaf = x.clone().requires_grad_()
        if offload:
            offload.__enter__()
        y = leaf * 1
        view = VIEWS[name](y)
        # The sine keeps the view itself.
        out = (view.sin() * view).sum() + (y * y).sum()
        if offload:
            offload.__exit__(None, None, None)
        out.backward()
        results.append((out.detach(), leaf.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_storage_is_copied_once_and_again_after_a_change_in_place() -> None:
    x = torch.randn(10, 8, requires_grad=True)
    offload = Offload(source="cpu")
    y = x.detach().clone()
    with offload:
        one = (y * x).sum() + (y[:, :4] * x[:, :4]).sum()
        assert offload.host_bytes == 320
        before = y.clone()
        y.mul_(3)
        two = (y * x).sum()
        assert offload.host_bytes == 2 * 320
    (gradient,) = torch.autograd.grad(one, x)
    expected = before.clone()
    expected[:, :4] += before[:, :4]
    assert torch.equal(gradient, expected)
    assert torch.equal(torch.autograd.grad(two, x)[0], y)


def test_backwards_of_several_forwards_may_come_in_any_order() -> None:
    x = torch.randn(40, requires_grad=True)
    offload = Offload([x], source="cpu")
    outs = []
    for factor in (1, 2, 3):
        with offload:
            outs.append((x * factor).exp().sin().exp())
    for index in (1, 0, 2):
        (gradient,) = torch.autograd.grad(outs[index].sum(), x)
        (expected,) = torch.autograd.grad((x * (index + 1)).exp().sin().exp().sum(), x)
        assert torch.equal(gradient, expected)
    del outs
    assert offload.host_bytes == 0


def test_what_was_kept_before_is_fetched_ahead() -> None:
    offload = Offload(source="cpu")
    with offload:
        packed = [offload.pack(torch.randn(5)) for _ in range(3)]
    copies = [each[0] for each in packed]
    offload.unpack(packed[2])
    assert [copy._fetched is not None for copy in copies] == [False, True, True]


def by_hand(network: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    """A GCN under autocast as a user must write it: its sparse products have it switched off."""
    for i, conv in enumerate(network.convs):
        with torch.autocast("cpu", torch.bfloat16):
            x = conv.lin(x)
        x = adjacency @ x.float() + conv.bias
        if i < len(network.convs) - 1:
            with torch.autocast("cpu", torch.bfloat16):
                x = F.dropout(F.relu(network.norms[i](x)), network.architecture.dropout)
    assert isinstance(x, Tensor)
    return x


def test_bf16_is_autocast_around_an_unmodified_model() -> None:
    network = Network(Architecture("gcn", 2, 24, 0.4, True), FEATURES, CLASSES)
    x, adjacency = graph("gcn")
    torch.manual_seed(3)
    expected = by_hand(network, x, adjacency)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    torch.manual_seed(3)
    compression = actbench.compress("bf16")
    with compression:
        logits = network(x, adjacency)
    logits.sum().backward()
    assert torch.equal(logits, expected)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    for p, gradient in zip(network.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)
    linear = nn.Linear(3, 2)
    for _ in range(2):
        with compression.around_loss:
            assert linear(torch.randn(4, 3)).dtype == torch.bfloat16
    assert linear(torch.randn(4, 3)).dtype == torch.float32
    with actbench.compress("exact").around_loss:
        assert linear(torch.randn(4, 3)).dtype == torch.float32


@pytest.mark.parametrize(
    "product",
    [
        lambda a, x: a @ x,
        torch.sparse.mm,
        torch.mm,
        lambda a, x: torch.matmul(a, other=x),
    ],
)
def test_every_form_of_a_sparse_product_stays_float32_under_bf16(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, adjacency = graph("sage")
    with actbench.compress("bf16"):
        for given in (x, x.bfloat16()):
            out = product(adjacency, given)
            assert out.dtype == torch.float32
            assert torch.equal(out, adjacency @ given.float())


def test_bf16_counts_the_copies_of_weights_and_data() -> None:
    """The data's copy is made anew; a weight's is kept where the input needs a gradient, which the data does not."""
    network = Network(Architecture("sage", 2, 24, 0.0, False), FEATURES, CLASSES)
    x, adjacency = graph("sage")
    with actbench.compress("bf16"), Ledger(resident(network, x, adjacency)) as ledger:
        out = network(x, adjacency)
    kept = sorted((entry.shape, entry.dtype) for entry in ledger.entries)
    assert kept == sorted(
        [((NODES, FEATURES), "bfloat16")] * 2 + [((NODES, 24), "bfloat16")] * 2 + [((24, CLASSES), "bfloat16")] * 2
    )
    assert out.requires_grad


def test_an_override_changes_its_call_alone() -> None:
    network: Any = Network(Architecture("sage", 2, 24, 0.4, True), FEATURES, CLASSES)
    x, adjacency = graph("sage")
    state = torch.get_rng_state()
    text = "exact:bits=4,projection=1/linear2:bits=8,projection=4/linear3:bits=32/batch_norm1:block=48"
    with actbench.compress(text), Ledger(resident(network, x, adjacency)) as ledger:
        out = network(x, adjacency)
    kept = [(e.operation, e.call, e.dtype, e.saved_bytes) for e in ledger.entries if e.saved_bytes > 100]
    assert kept == [
        ("linear", 1, "uint8", NODES * 16 // 2),
        ("linear", 1, "bfloat16", NODES * 2),
        ("linear", 1, "bfloat16", NODES * 2),
        ("linear", 2, "uint8", NODES * 4),
        ("linear", 2, "bfloat16", NODES * 2),
        ("linear", 2, "bfloat16", NODES * 2),
        ("batch_norm", 1, "uint8", NODES * 24 // 2),
        ("relu", 1, "uint8", NODES * 24 // 8),
        ("dropout", 1, "uint8", NODES * 24 // 8),
        ("linear", 3, "float32", NODES * 24 * 4),
        ("linear", 4, "uint8", NODES * 24 // 2),
        ("linear", 4, "bfloat16", NODES * 2),
        ("linear", 4, "bfloat16", NODES * 2),
    ]
    assert sum(e.saved_bytes for e in ledger.entries if e.operation == "batch_norm") == 24 * 8 + 720 + 4 * 30
    exact, estimated = network.convs[1].lin_l.weight, network.convs[1].lin_r.weight
    out.sum().backward()
    found = exact.grad.clone(), estimated.grad.clone()
    network.zero_grad()
    torch.set_rng_state(state)
    network(x, adjacency).sum().backward()
    assert torch.equal(exact.grad, found[0])
    assert not torch.equal(estimated.grad, found[1])


def test_a_product_is_numbered_as_the_ledger_names_it() -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    x = torch.randn(20, 6)
    with actbench.compress("exact:bits=8,projection=1/mm1:bits=4/matmul1:bits=2"), Ledger([weight]) as ledger:
        outs = torch.mm(x, weight), x @ weight
    kept = {e.operation: e.saved_bytes for e in ledger.entries if e.dtype == "uint8"}
    assert kept == {"mm": 60, "matmul": 30}
    assert outs[0].requires_grad


def test_an_override_of_a_call_that_a_model_has_not_is_named() -> None:
    subject = Subject(recipe_for("mine", "gcn").overridden(layers=2, batch_norm=False), "single-label")
    require_calls(subject, Scheme.parse("exact/linear2:bits=4"))
    with pytest.raises(SchemeError, match="overrides linear3, but the model calls linear 2 times"):
        require_calls(subject, Scheme.parse("exact/linear3:bits=4"))
    with pytest.raises(SchemeError, match="overrides batch_norm1, but the model does not call batch_norm"):
        require_calls(subject, Scheme.parse("exact/batch_norm1:bits=4"))


def test_on_a_gpu_a_dropout_under_autocast_keeps_a_byte_and_a_generator_sixteen() -> None:
    trace = operations(Architecture("sage", 2, 24, 0.4, False), NODES, FEATURES, CLASSES)
    kept = {
        name: [predict_saved_bytes(trace, Scheme.parse(name), device) for device in ("cpu", "cuda")]
        for name in ("bf16", "checkpoint", "offload")
    }
    assert kept["bf16"][0] - kept["bf16"][1] == NODES * 24
    assert kept["checkpoint"] == [2 * 5056 + NODES * 24 * 4, 2 * 16 + NODES * 24 * 4]
    assert kept["offload"] == [0, 0]


@pytest.mark.parametrize(("outer", "inner"), [("bf16", "fp32"), ("bf16", "exact"), ("bf16", "checkpoint")])
def test_the_innermost_scheme_decides_inside_autocast_too(outer: str, inner: str) -> None:
    lin, x = torch.nn.Linear(8, 8), torch.randn(16, 8)
    with compress(outer):
        with compress(inner):
            assert run_layer(lin, lin, x).dtype == torch.float32
        assert lin(x).dtype == torch.bfloat16


def test_a_scheme_inside_of_offload_keeps_its_tensors_where_they_are() -> None:
    outer = Compression(Rules(Scheme.parse("offload"), 0), Offload(source="cpu"))
    lin, x = torch.nn.Linear(8, 8), torch.randn(16, 8)
    with outer:
        with compress("fp32"):
            held = lin(x)
        assert outer.offload is not None
        assert outer.offload.host_bytes == 0
        held = lin(x)
        assert outer.offload.host_bytes > 0
    held.sum().backward()


@pytest.mark.parametrize("scheme", ["checkpoint", "offload"])
def test_a_forward_without_gradients_needs_nothing_to_recompute_or_move(scheme: str) -> None:
    lin, x = torch.nn.Linear(8, 8), torch.randn(16, 8)
    with compress(scheme), torch.no_grad():
        run_layer(lin, lin, x)
    with pytest.raises(UsageError, match="found no"), compress(scheme):
        lin(x)


def test_sums_with_a_sparse_product_are_float32_under_autocast() -> None:
    lin, x = torch.nn.Linear(8, 8), torch.randn(8, 8)
    adjacency = torch.eye(8).to_sparse_csr()
    with compress("bf16"):
        hidden = lin(x)
        for out in (torch.addmm(hidden, adjacency, hidden), hidden.addmm(adjacency, hidden)):
            assert out.dtype == torch.float32
            assert torch.equal(out, 2 * hidden.float())
