import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv

import actbench
from actbench.compress import Ledger, watch
from actbench.compress.watch import Watch
from actbench.errors import NonFiniteError, SchemeError
from actbench.graphs import mean_adjacency
from actbench.quant.cpu import mersenne

# Single functions, and what is left to torch by design: that nothing is compressed is told, and no fault.
pytestmark = pytest.mark.filterwarnings("ignore:.*compressed nothing:UserWarning")

SCHEMES = ["fp32", "exact", "blockwise", "blockwise-vm", "blockwise:bits=8,block=5,projection=1"]


def graph(nodes: int = 60, edges: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.unique(torch.randint(nodes, (2, edges), generator=generator), dim=1)
    return torch.randn(nodes, 16, generator=generator), edge_index


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = SAGEConv(16, 24, aggr="sum"), SAGEConv(24, 5, aggr="sum")
        self.norm = nn.BatchNorm1d(24)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.norm(self.conv1(x, adjacency))), 0.4, self.training)
        out: Tensor = self.conv2(x, adjacency)
        return out


class Modules(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConv(16, 24, normalize=False), GCNConv(24, 5, normalize=False)
        # Stock torch refuses a dropout in place on what a ReLU has kept.
        self.rest = nn.Sequential(nn.BatchNorm1d(24), nn.ReLU(inplace=inplace), nn.Dropout(0.4))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.rest(self.conv1(x, adjacency)), adjacency)
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "functional SAGE": Functional,
    "module GCN": lambda: Modules(inplace=False),
    "in-place GCN": lambda: Modules(inplace=True),
}


def train_twice(model: str, scheme: str) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor], Tensor]:
    """Two forward passes and their gradients: outputs, state afterwards, gradients, torch's next random number."""
    torch.manual_seed(7)
    network = MODELS[model]()
    x, edge_index = graph()
    adjacency = mean_adjacency(edge_index, x.shape[0])
    outs = []
    for _ in range(2):
        with actbench.compress(scheme):
            outs.append(network(x, adjacency))
    sum(out.square().mean() for out in outs).backward()
    return outs, network.state_dict(), [p.grad for p in network.parameters() if p.grad is not None], torch.rand(3)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_forward_is_fp32s_bit_for_bit(model: str, scheme: str) -> None:
    torch.manual_seed(7)
    network = MODELS[model]()
    x, edge_index = graph()
    adjacency = mean_adjacency(edge_index, x.shape[0])
    expected = [network(x, adjacency) for _ in range(2)]
    following = torch.rand(3)
    outs, state, gradients, after = train_twice(model, scheme)
    assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert torch.equal(after, following)
    assert len(gradients) == len(list(network.parameters()))


def test_layers_of_the_papers_keep_what_exact_keeps() -> None:
    x, edge_index = graph()
    network = Functional()
    adjacency = mean_adjacency(edge_index, 60)
    with actbench.compress("exact"), Ledger([x, adjacency, *network.parameters(), *network.buffers()]) as ledger:
        out = network(x, adjacency)
    assert out.requires_grad
    kept = [(e.operation, e.call, e.dtype, e.saved_bytes) for e in ledger.entries if e.dtype == "uint8"]
    assert kept == [
        # 60 rows of 16 / 8 = 2 codes: 120 codes of 2 bits; layer 0's own input among them, as EXACT keeps it.
        ("linear", 1, "uint8", 30),
        ("linear", 2, "uint8", 30),
        ("batch_norm", 1, "uint8", 60 * 24 // 4),
        ("relu", 1, "uint8", 60 * 24 // 8),
        ("dropout", 1, "uint8", 60 * 24 // 8),
        ("linear", 3, "uint8", 60 * 3 // 4),
        ("linear", 4, "uint8", 60 * 3 // 4),
    ]
    floats = {e.saved_bytes for e in ledger.entries if e.dtype == "float32"}
    assert floats == {24 * 4}


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu positional": lambda x: F.relu(x, False),
    "F.relu inplace": lambda x: F.relu(x * 1, inplace=True),
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "torch.relu_": lambda x: torch.relu_(x * 1),
    "Tensor.relu_": lambda x: (x * 1).relu_(),
    "nn.ReLU": nn.ReLU(),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_form_of_relu_keeps_bits_and_is_exact(name: str) -> None:
    x = torch.randn(33, 3)
    x[0, 0], x[1, 1] = 0.0, float("nan")
    results = []
    for scheme in ("fp32", "exact"):
        leaf = x.clone().requires_grad_()
        with actbench.compress(scheme), Ledger() as ledger:
            out = RELUS[name](leaf)
        out.backward(torch.ones_like(out) * 3)
        results.append((out.detach(), leaf.grad, ledger.total_bytes))
    (out, gradient, _), (out2, gradient2, saved_bytes) = results
    assert torch.equal(out, out2) or torch.equal(out.isnan(), out2.isnan())
    assert gradient is not None
    assert gradient2 is not None
    assert torch.equal(gradient, gradient2)
    assert saved_bytes == 13


DROPOUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "F.dropout": lambda x, p: F.dropout(x, p),
    "F.dropout keywords": lambda x, p: F.dropout(input=x, p=p, training=True),
    "F.dropout inplace": lambda x, p: F.dropout(x * 1, p, inplace=True),
    "torch.dropout": lambda x, p: torch.dropout(x, p, True),
    "torch.dropout_": lambda x, p: torch.dropout_(x * 1, p, True),
    "nn.Dropout": lambda x, p: nn.Dropout(p)(x),
}


@pytest.fixture(params=["whoever draws", "torch draws"])
def drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's numbers are not the twister's, torch draws them itself."""
    if request.param == "torch draws":
        monkeypatch.setattr(mersenne, "matches_torch", lambda: False)


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", DROPOUTS)
def test_every_form_of_dropout_keeps_bits_and_is_exact(name: str, p: float) -> None:
    x = torch.randn(40, 7)
    results = []
    for scheme in ("fp32", "exact"):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        with actbench.compress(scheme), Ledger() as ledger:
            out = DROPOUTS[name](leaf, p)
        out.backward(torch.linspace(-1, 1, 280).view(40, 7))
        results.append((out.detach(), leaf.grad, ledger.total_bytes))
    (out, gradient, _), (out2, gradient2, saved_bytes) = results
    assert torch.equal(out, out2)
    assert gradient is not None
    assert gradient2 is not None
    assert torch.equal(gradient, gradient2)
    # At p = 1 torch multiplies by a zero, and keeps that.
    assert saved_bytes == (35 if p < 1 else 4)


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", DROPOUTS)
def test_a_dropout_kept_by_its_seed_is_drawn_again(name: str, dtype: torch.dtype) -> None:
    # 12,600 bytes of bits, or 5,056 of a Mersenne twister's state.
    x = torch.randn(400, 252).to(dtype)
    results = []
    for scheme in ("fp32", "exact:dropout=seed"):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        with actbench.compress(scheme), Ledger() as ledger:
            out = DROPOUTS[name](leaf, 0.3)
        # Draws in between neither disturb the mask nor are disturbed.
        between = torch.rand(5)
        out.backward(torch.linspace(-1, 1, x.numel()).view(x.shape).to(dtype))
        results.append((out.detach(), leaf.grad, between, torch.rand(5)))
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    assert ledger.total_bytes == 5056


def test_a_small_or_transposed_dropout_keeps_its_bits_all_the_same() -> None:
    for x in (torch.randn(40, 7), torch.randn(252, 400).t()):
        leaf = x.requires_grad_()
        with actbench.compress("exact:dropout=seed"), Ledger() as ledger:
            out = F.dropout(leaf, 0.3)
        assert ledger.total_bytes == out.numel() // 8


def test_dropout_of_a_transposed_tensor_draws_the_same_mask() -> None:
    x = torch.randn(6, 9).t().requires_grad_()
    torch.manual_seed(0)
    expected = F.dropout(x)
    torch.manual_seed(0)
    with actbench.compress("exact"):
        assert torch.equal(F.dropout(x), expected)


LINEARS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "F.linear": lambda x, w: F.linear(x, w.t()),
    "F.linear keywords": lambda x, w: F.linear(input=x, weight=w.t(), bias=None),
    "@": lambda x, w: x @ w,
    "torch.matmul": torch.matmul,
    "torch.mm": torch.mm,
    "Tensor.mm": lambda x, w: x.mm(w),
    "Tensor.matmul": lambda x, w: x.matmul(w),
}


@pytest.mark.parametrize("name", LINEARS)
def test_every_form_of_a_linear_layer(name: str) -> None:
    """8 bits in blocks of one element: the estimate is off by rounding alone, so the gradient all but exact."""
    x, w = torch.randn(20, 6, requires_grad=True), nn.Parameter(torch.randn(6, 4))
    results: list[Any] = []
    for scheme in ("fp32", "exact:bits=8,block=1,projection=1"):
        with actbench.compress(scheme), Ledger([w]) as ledger:
            out = LINEARS[name](x, w)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, w)), ledger))
    (out, by_x, by_w, _), (out2, by_x2, by_w2, ledger) = results
    assert torch.equal(out, out2)
    assert torch.allclose(by_x, by_x2, rtol=1e-6, atol=1e-5)
    # A block of one has its value between bfloat16 numbers that are 2**-7 of it apart, cut in 255 steps at least.
    bound = (x.detach().abs().t() @ (2 * out.detach().abs())) * 2.0**-7 / 255
    assert bool(((by_w - by_w2).abs() <= bound + 1e-4).all())
    assert ledger.total_bytes == 120 + 120 * 4


def test_linear_on_more_dimensions_and_without_a_gradient_for_the_input() -> None:
    x, layer = torch.randn(2, 5, 8), nn.Linear(8, 3)
    with actbench.compress("exact:bits=8,block=1,projection=1"):
        out = layer(x)
    out.sum().backward()
    assert torch.equal(out, layer(x))
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, x.sum((0, 1)).expand(3, 8), atol=1e-2)


@pytest.mark.parametrize("shape", [(12, 5), (4, 5, 6), (3, 5, 2, 7)])
def test_batch_norm_in_one_two_and_three_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    results: list[Any] = []
    for scheme in ("fp32", "exact:bits=8,block=1"):
        norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](5)
        with actbench.compress(scheme):
            out = norm(x)
        (by_x,) = torch.autograd.grad(out.square().sum() + out.pow(3).sum(), x)
        results.append((out, by_x, norm.running_mean, norm.running_var))
    (out, by_x, *running), (out2, by_x2, *running2) = results
    assert torch.equal(out, out2)
    assert all(torch.equal(a, b) for a, b in zip(running, running2, strict=True))
    assert torch.allclose(by_x, by_x2, atol=2e-3)


def test_batch_norm_in_evaluation_mode_still_has_gradients() -> None:
    norm = nn.BatchNorm1d(4).eval()
    x = torch.randn(9, 4, requires_grad=True)
    with actbench.compress("exact:bits=8,block=1"):
        norm(x).square().sum().backward()
    estimate = norm.weight.grad
    norm.weight.grad = None
    norm(x).square().sum().backward()
    assert estimate is not None
    assert norm.weight.grad is not None
    assert torch.allclose(estimate, norm.weight.grad, rtol=1e-3)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_sparse_products_keep_the_graph_alone(reduce: str) -> None:
    """PyG's `aggr="mean"` on CSR takes this product, whose stock version keeps the dense matrix too."""
    x, edge_index = graph(12, 40)
    adjacency = mean_adjacency(edge_index, 12)
    x = x.requires_grad_()
    results = []
    for scheme in ("fp32", "exact"):
        with actbench.compress(scheme), Ledger([adjacency]) as ledger:
            out = torch.sparse.mm(adjacency, x, reduce)
        (by_x,) = torch.autograd.grad(out, x, torch.ones_like(out).cumsum(0))
        results.append((out, by_x, ledger.total_bytes))
    (out, by_x, stock_bytes), (out2, by_x2, saved_bytes) = results
    assert torch.equal(out, out2)
    dense = adjacency.to_dense()
    if reduce == "mean":
        dense = dense / (dense != 0).sum(1, keepdim=True).clamp(min=1)
    assert torch.allclose(by_x2, dense.t() @ torch.ones(12, 16).cumsum(0), atol=1e-5)
    assert torch.allclose(by_x, by_x2, atol=1e-5)
    assert (stock_bytes, saved_bytes) == (12 * 16 * 4, 0)


def test_what_is_not_known_stays_exact_and_is_named() -> None:
    x = torch.randn(10, 4, requires_grad=True)
    with actbench.compress("exact"), Ledger() as ledger:
        x.exp()
        out = x.exp()
    # The first result is gone, and with it what it kept.
    assert [(e.operation, e.call, e.saved_bytes) for e in ledger.entries] == [("exp", 2, 160)]
    assert out.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64])
def test_doubles_stay_exact(dtype: torch.dtype) -> None:
    x, w = torch.randn(5, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype, requires_grad=True)
    with actbench.compress("exact"):
        F.linear(x, w).sum().backward()
    assert w.grad is not None
    # Two orders of summing 5 doubles.
    assert torch.allclose(w.grad, x.sum(0).expand(3, 4), rtol=0, atol=5 * 5 * 2.0**-53 * float(x.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_compressed(dtype: torch.dtype) -> None:
    x, w = torch.randn(64, 32).to(dtype), torch.randn(3, 32).to(dtype).requires_grad_()
    with actbench.compress("exact"), Ledger([w]) as ledger:
        out = F.linear(x, w)
    out.sum().backward()
    assert w.grad is not None
    assert w.grad.dtype == dtype
    assert ledger.total_bytes == 64 + 64 * 4


def test_nothing_is_kept_without_gradients() -> None:
    x, edge_index = graph()
    network = Functional()
    with actbench.compress("exact"), torch.no_grad(), Ledger() as ledger:
        out = network(x, mean_adjacency(edge_index, 60))
    assert ledger.total_bytes == 0
    assert not out.requires_grad


def test_the_innermost_of_nested_contexts_decides() -> None:
    x, layer = torch.randn(64, 32), nn.Linear(32, 4)
    with actbench.compress("exact"), actbench.compress("fp32"), Ledger(layer.parameters()) as inner:
        out = layer(x)
    assert [e.dtype for e in inner.entries] == ["float32"]
    out.sum().backward()


def test_threads_do_not_see_each_others_context() -> None:
    seen: list[int] = []

    def other() -> None:
        with Ledger() as ledger:
            out = torch.randn(8, 8, requires_grad=True).relu()
        seen.append(ledger.total_bytes)
        out.sum().backward()

    with actbench.compress("exact"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [8 * 8 * 4]


def estimate(seed: int | None, **options: Any) -> Tensor:
    torch.manual_seed(options.get("torch_seed", 0))
    x = torch.linspace(-1, 1, 640).view(40, 16)
    w = torch.ones(2, 16, requires_grad=True)
    with actbench.compress("exact", seed=seed):
        F.linear(x, w).sum().backward()
    assert w.grad is not None
    return w.grad


def test_noise_follows_the_seed_and_only_that() -> None:
    assert torch.equal(estimate(5), estimate(5, torch_seed=9))
    assert not torch.equal(estimate(5), estimate(6))
    assert not torch.equal(estimate(None), estimate(None))


def test_a_context_entered_again_draws_fresh_noise() -> None:
    x, w = torch.linspace(-1, 1, 640).view(40, 16), torch.ones(2, 16, requires_grad=True)
    context = actbench.compress("exact", seed=1)
    gradients = []
    for _ in range(2):
        with context:
            out = F.linear(x, w)
        gradients.append(torch.autograd.grad(out.sum(), w)[0])
    assert not torch.equal(*gradients)


def test_backward_twice_through_one_graph() -> None:
    x, w = torch.linspace(-1, 1, 640).view(40, 16), torch.ones(2, 16, requires_grad=True)
    with actbench.compress("exact", seed=1):
        out = F.linear(x, w).sum()
    first, second = (torch.autograd.grad(out, w, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_wrong_scheme_is_refused_before_anything_is_entered() -> None:
    with pytest.raises(SchemeError, match="bits=3"):
        actbench.compress("exact:bits=3")
    assert torch.ones(2).relu().sum() == 2


def test_three_dimensions_may_be_changed_in_place() -> None:
    network = nn.Sequential(nn.Linear(32, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))
    x = torch.randn(4, 16, 32)
    expected = network(x)
    with actbench.compress("exact"):
        out = network(x)
    out.sum().backward()
    assert torch.equal(out, expected)


def test_autocast() -> None:
    network = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(24, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(x)
        with actbench.compress("exact"), Ledger(network.parameters()) as ledger:
            out = network(x)
    out.float().sum().backward()
    assert torch.equal(out, expected)
    assert x.grad is not None
    assert [e.operation for e in ledger.entries if e.dtype == "uint8"] == ["linear", "relu", "linear"]


def test_calls_that_only_torch_understands_are_left_to_torch() -> None:
    a = torch.eye(3)
    out = torch.empty(3, 3)
    with actbench.compress("exact"):
        torch.mm(a, a, out=out)
        assert torch.equal(out, a)
        loops = mean_adjacency(torch.arange(3).repeat(2, 1), 3)
        assert torch.equal(torch.sparse.mm(sparse=loops, dense=a), a)
        with pytest.raises(TypeError):
            torch.mm(a, colour=a)  # type: ignore[call-overload]


def test_of_two_activations_neither_is_compressed() -> None:
    a, x = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)
    with actbench.compress("exact"):
        (by_x,) = torch.autograd.grad((a @ x).sum(), x)
    assert torch.equal(by_x, torch.autograd.grad((a @ x).sum(), x)[0])


def test_a_layer_without_outputs() -> None:
    with actbench.compress("exact"):
        F.linear(torch.randn(3, 4), nn.Parameter(torch.empty(0, 4))).sum().backward()


def test_a_tensor_that_cannot_be_packed_is_named() -> None:
    first, norm, last = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
    x = torch.randn(20, 5)
    with actbench.compress("blockwise") as compression:
        last(norm(first(x)))
        compression.check()
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = x.clone()
        broken[13, 2] = value
        with compression, pytest.raises(NonFiniteError, match=r"^the input of linear 1 \(float32 \[20, 5\]\) cannot"):
            last(norm(first(broken)))
    # Each of the two is a float32, their distance is not.
    far = torch.zeros(20, 6)
    far[3, 1], far[4, 1] = 3e38, -3e38
    with compression, pytest.raises(NonFiniteError, match=r"^the input of batch_norm 1 \(float32 \[20, 6\]\) cannot"):
        norm(far + first(x) * 0)
    with compression:
        last(norm(first(x)))


def test_a_flag_that_a_gpu_sets_late_is_found_in_backward_or_by_the_next_forward() -> None:
    linear = nn.Linear(5, 2)
    x = torch.randn(20, 5)
    with actbench.compress("exact") as compression:
        out = linear(x)
        stand = out.grad_fn.reading
        late = compression.rules.watch.flag(stand._reading.name, x.device)
    late.fill_(1)
    with pytest.raises(NonFiniteError, match="the input of linear 1"):
        out.sum().backward()
    late.fill_(1)
    with pytest.raises(NonFiniteError, match="the input of linear 1"), compression:
        pass
    with compression:
        linear(x)


def test_the_first_of_many_that_cannot_be_packed_is_named_and_others_are_not_blamed() -> None:
    watch, other, device = Watch(), Watch(), torch.device("cpu")
    for index in range(20_000):
        (watch if index % 2 else other).flag(f"tensor {index}", device)
    watch.check()
    flags = [watch.flag(f"late tensor {index}", device) for index in range(3000)]
    for flag in flags[40:]:
        flag.fill_(1)
    other.check()
    with pytest.raises(NonFiniteError, match="late tensor 40 cannot"):
        watch.check()
    watch.check()


@pytest.mark.parametrize(
    ("initialised", "capturing", "allocated"), [(False, False, []), (True, False, ["cuda"]), (True, True, [])]
)
def test_a_gpus_flags_are_there_before_a_graph_is_captured(
    initialised: bool, capturing: bool, allocated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(watch, "_flags", asked.append)
    Watch()
    assert asked == allocated


@pytest.mark.parametrize("scheme", ["exact", "derived"])
@pytest.mark.parametrize("operation", [F.relu, F.dropout, nn.Linear(8, 8)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_model_breaks_its_graph_and_gives_the_same(
    operation: Callable[[Tensor], Tensor], scheme: str
) -> None:
    linear = nn.Linear(8, 8)
    x = torch.randn(40, 8)
    results = []
    compiled: Callable[[Tensor], Tensor] = torch.compile(lambda z: operation(linear(z)), backend="eager")
    for function in (lambda z: operation(linear(z)), compiled):
        torch.manual_seed(0)
        linear.zero_grad()
        with actbench.compress(scheme, seed=3):
            out = function(x)
        out.sum().backward()
        assert linear.weight.grad is not None
        results.append((out.detach(), linear.weight.grad.clone()))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scheme", ["blockwise", "exact:dropout=seed"])
def test_defaults_of_a_users_own_do_not_matter(scheme: str) -> None:
    """Another default device and dtype than the tensors', as large models are built with."""
    linear, x = nn.Linear(80, 80), torch.randn(600, 80)
    gradients = []
    for device, dtype in (("cpu", torch.float32), ("meta", torch.bfloat16)):
        linear.zero_grad()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device), actbench.compress(scheme, seed=3):
                torch.manual_seed(0)
                out = F.dropout(F.relu(linear(x)))
                out.backward(torch.ones_like(out))
        finally:
            torch.set_default_dtype(torch.float32)
        assert linear.weight.grad is not None
        gradients.append(linear.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("scheme", ["int8", "derived"])
@pytest.mark.parametrize("shapes", [[(5, 8), (6, 5)], [(5, 8), (1, 5)], [(8,)]])
def test_linears_that_are_no_layers_stay_exact(shapes: list[tuple[int, ...]], scheme: str) -> None:
    """A bias for every row, or a weight that is a vector; of data as it is, and of a sparse product."""

    def gradients(scheme: str, adjacency: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        x = torch.randn(6, 8, generator=generator).requires_grad_()
        with actbench.compress(scheme, seed=1):
            out = F.linear(adjacency @ (x * 2), *parameters)
        out.square().sum().backward()
        return [leaf.grad for leaf in (*parameters, x) if leaf.grad is not None]

    for adjacency in (torch.eye(6), torch.eye(6).to_sparse_csr()):
        found, expected = gradients(scheme, adjacency), gradients("fp32", adjacency)
        assert len(found) == len(expected) == len(shapes) + 1
        assert all(map(torch.equal, found, expected))
