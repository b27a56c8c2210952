"""What people have met in practice, each rebuilt small: it is as under FP32, or one sentence says why not."""

import copy
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCN, GroupAddRev, SAGEConv

import actbench
from actbench.compress import Ledger
from actbench.errors import SchemeError, UsageError
from actbench.scheme import NAMES

ROWS, WIDTH = 60, 16
QUANTIZING = ["int8", "int4", "exact", "blockwise", "derived", "derived-fine"]


def step(network: nn.Module, x: Tensor, scheme: str) -> list[Tensor]:
    network.zero_grad()
    torch.manual_seed(3)
    with actbench.compress(scheme, seed=1):
        out = network(x)
    out.square().sum().backward()
    return [out.detach(), *[p.grad.clone() for p in network.parameters() if p.grad is not None]]


@pytest.mark.parametrize("scheme", QUANTIZING)
def test_lazy_modules_are_made_inside(scheme: str) -> None:
    torch.manual_seed(0)
    lazy = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4))
    found = step(lazy, torch.randn(ROWS, WIDTH), scheme)
    assert all(bool(each.isfinite().all()) for each in found)
    assert len(found) == 1 + 6


@pytest.mark.filterwarnings("ignore:.*compressed nothing:UserWarning")
@pytest.mark.parametrize("scheme", QUANTIZING)
@pytest.mark.parametrize("kind", ["linear", "product", "addmm", "aggregated", "only biases"])
def test_an_optimizer_steps_between_two_backwards_of_what_nobody_reads(kind: str, scheme: str) -> None:
    """FP32 keeps no weight for an input that needs no gradient, and no β."""
    torch.manual_seed(0)
    x, adjacency = torch.randn(ROWS, WIDTH), torch.eye(ROWS).to_sparse_csr()
    layer, bias = nn.Linear(WIDTH, 8), nn.Parameter(torch.zeros(8))
    weight, norm = nn.Parameter(torch.randn(WIDTH, 8)), nn.BatchNorm1d(WIDTH)
    norm.weight.requires_grad_(kind != "only biases")
    kinds: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: layer(x),
        "product": lambda: x @ weight,
        "addmm": lambda: torch.addmm(bias, x, weight),
        "aggregated": lambda: layer(adjacency @ x),
        "only biases": lambda: F.relu(norm(x)),
    }
    parameters = [*layer.parameters(), bias, weight, *([norm.bias] if kind == "only biases" else [])]
    optimizer = torch.optim.SGD(parameters, 0.1)
    with actbench.compress(scheme):
        one, other = kinds[kind]().pow(2).mean(), kinds[kind]().pow(3).mean()
    one.backward()
    optimizer.step()
    other.backward()


def test_bf16_multiplies_by_a_sparse_matrix_on_either_side() -> None:
    torch.manual_seed(0)
    sparse = (torch.rand(20, 20) < 0.3).float().to_sparse_csr()
    x, column = torch.randn(20, 20), torch.randn(20)
    short = x.bfloat16()
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "sparse @ dense": lambda x: sparse @ x,
        "dense @ sparse": lambda x: x @ sparse,
        "matmul": lambda x: torch.matmul(x, sparse),
        "mm": lambda x: torch.mm(x, sparse),
        "of coo": lambda x: x @ sparse.to_sparse_coo(),
        "addmm": lambda x: torch.addmm(x, sparse, x),
        "keywords": lambda x: torch.mm(input=sparse, mat2=x),
        "mv": lambda x: torch.mv(sparse, x[:, 0]),
        "sparse.mm": lambda x: torch.sparse.mm(sparse, x),
    }
    for name, form in forms.items():
        for given in (x, short):
            leaf = given.clone().requires_grad_()
            with actbench.compress("bf16"):
                out = form(leaf)
            assert out.dtype == torch.float32, name
            assert torch.equal(out, form(given.float())), name
            out.sum().backward()
            assert leaf.grad is not None
    assert column.shape == (20,)


@pytest.mark.parametrize("scheme", QUANTIZING)
def test_reversible_blocks_resize_what_was_packed(scheme: str) -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SAGEConv(8, 8)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return F.relu(self.conv(x, edge_index))

    x, edge_index = torch.randn(ROWS, WIDTH), torch.randint(ROWS, (2, 240))
    first, reversible, last = nn.Linear(WIDTH, 16), GroupAddRev(Block(), num_groups=2), nn.Linear(16, 4)
    found = []
    for each in ("fp32", scheme):
        for module in (first, reversible, last):
            module.zero_grad()
        with actbench.compress(each, seed=1):
            out = last(reversible(first(x), edge_index))
        out.square().sum().backward()
        assert first.bias.grad is not None
        found.append((out.detach(), first.bias.grad.clone()))
    # What runs again in backward is exact, and so is what passes through it: to the rounding of its inverse.
    assert torch.equal(found[0][0], found[1][0])
    largest = float(found[0][1].abs().max())
    assert torch.allclose(found[0][1], found[1][1], rtol=0, atol=ROWS * 2.0**-20 * largest)


@torch.jit.script
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (ROWS, WIDTH, 5)])
def test_a_batch_norm_into_a_scripted_function(shape: tuple[int, ...]) -> None:
    """Whose reading of its input no mode sees, though nothing else of it lives."""
    torch.manual_seed(0)
    norm, x, g = nn.BatchNorm1d(WIDTH), torch.randn(shape, requires_grad=True), torch.randn(shape)
    found = []
    for scheme in ("fp32", "derived:bits=8,block=1,levels=uniform"):
        with actbench.compress(scheme):
            out = swish(norm(x * 1))
        found.append(torch.autograd.grad(out, (x, norm.weight, norm.bias), g))
    # An 8-bit code in blocks of one is off by a 255th of 2⁻⁷ of x̂, itself 5 at most, and enters sums of all rows.
    off = 2.0**-7 / 255 * 5 + x.numel() / WIDTH * 2.0**-23
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 20 * off * float(g.abs().sum())


NO_MORE: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)),
    "sigmoid": lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Sigmoid(), nn.Linear(64, 4)),
    "softmax": lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Softmax(-1), nn.Linear(64, 4)),
    "reshaped": lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.Unflatten(1, (2, 32)), nn.Linear(32, 4)),
    "tanh, then a norm": lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.BatchNorm1d(64), nn.Linear(64, 4)),
    "one linear": lambda: nn.Linear(WIDTH, 4),
    "columns of one": lambda: nn.Sequential(nn.Linear(WIDTH, 1), nn.ReLU(), nn.Linear(1, 4)),
    "ReLU, then convolution": lambda: nn.Sequential(
        nn.Linear(WIDTH, 64), nn.ReLU(), nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 1, 3), nn.Flatten(), nn.Linear(62, 4)
    ),
}


def kept_bytes(function: Callable[[], Tensor], exclude: list[Tensor], scheme: str) -> int:
    with warnings.catch_warnings(), actbench.compress(scheme), Ledger(exclude) as ledger:
        warnings.simplefilter("ignore")
        out = function()
    assert out.requires_grad
    return ledger.total_bytes


@pytest.mark.filterwarnings("ignore:.*compressed nothing:UserWarning")
@pytest.mark.parametrize("scheme", ["int8", "int4", "derived", "derived-fine"])
@pytest.mark.parametrize("name", NO_MORE)
def test_no_more_is_kept_than_fp32_keeps(name: str, scheme: str) -> None:
    """Nor is a code of the data, which stays anyway: the papers' schemes alone keep one."""
    torch.manual_seed(0)
    network, x = NO_MORE[name](), torch.randn(400, WIDTH)
    exclude = [x, *network.parameters(), *network.buffers()]
    assert kept_bytes(lambda: network(x), exclude, scheme) <= kept_bytes(lambda: network(x), exclude, "fp32")


LATER: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": lambda h: F.conv1d(h.unsqueeze(1), torch.ones(1, 1, 3, requires_grad=True), padding=1).squeeze(1),
    "gelu": lambda h: F.gelu(h),
    "a view": lambda h: F.silu(h.view(-1)).view(h.shape),
    "product": lambda h: h * h.sin(),
}


@pytest.mark.parametrize("scheme", QUANTIZING)
@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_code_gives_way_to_what_is_kept_in_float_later(inplace: bool, name: str, scheme: str) -> None:
    """Of a ReLU and of a linear's input: no byte more than FP32, its gradient, and torch's check of versions."""
    torch.manual_seed(0)
    first, last, x = nn.Linear(WIDTH, 32), nn.Linear(32, 4), torch.randn(400, WIDTH)

    def forward() -> tuple[Tensor, Tensor]:
        h = F.relu(first(x), inplace=inplace)
        out: Tensor = last(h)
        return h, out + LATER[name](h).sum(1, keepdim=True)

    exclude = [x, *first.parameters(), *last.parameters()]
    found, kept = [], []
    for each in ("fp32", scheme):
        with actbench.compress(each, seed=0), Ledger(exclude) as ledger:
            _, out = forward()
        kept.append(ledger.total_bytes)
        found.append(torch.autograd.grad(out.square().sum(), [*last.parameters(), first.bias]))
    data = 0 if scheme in ("int8", "int4", "derived", "derived-fine") else 400 * 12
    assert kept[1] <= kept[0] + data
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=400 * 2.0**-22 * float(one.abs().max()))
    with actbench.compress(scheme, seed=0):
        h, out = forward()
    with torch.no_grad():
        h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore:.*compressed nothing:UserWarning")
@pytest.mark.parametrize("scheme", QUANTIZING)
def test_a_parameter_is_kept_by_nobody(scheme: str) -> None:
    embedding, layer = nn.Embedding(300, 64), nn.Linear(64, 8)
    exclude: list[Tensor] = [*embedding.parameters(), *layer.parameters()]
    assert kept_bytes(lambda: layer(embedding.weight), exclude, scheme) == 0
    assert kept_bytes(lambda: layer(embedding.weight[:200]), exclude, scheme) == 0


WEIGHTS: dict[str, Callable[[Tensor, nn.Parameter, nn.Parameter], Tensor]] = {
    "h @ V": lambda h, v, w: h @ v,
    "h @ V.t()": lambda h, v, w: h @ v.t(),
    "h @ V.T": lambda h, v, w: h @ v.T,
    "h @ W[1]": lambda h, v, w: h @ w[1],
    "h @ W.unbind()[2].t()": lambda h, v, w: h @ w.unbind()[2].t(),
    "mm": lambda h, v, w: torch.mm(h, w[0]),
    "addmm": lambda h, v, w: torch.addmm(v[0], h, w[0].t()),
    "h @ V.view": lambda h, v, w: h @ v.view(32, 8, 4).reshape(32, 32),
    "linear": lambda h, v, w: F.linear(h, v.t()),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_view_of_a_parameter_is_a_weight(name: str) -> None:
    torch.manual_seed(0)
    v, w = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.randn(3, 32, 32))
    x, first, g = torch.randn(200, 32), nn.Linear(32, 32), torch.randn(200, 32)
    found = []
    for scheme in ("fp32", "exact:bits=8,block=1,projection=1", "int4", "derived"):
        with actbench.compress(scheme), Ledger([v, w, x, *first.parameters()]) as ledger:
            out = WEIGHTS[name](first(x), v, w)
        gradients = torch.autograd.grad(out, (v, w, first.bias), g, allow_unused=True)
        found.append((out.detach(), gradients, ledger.total_bytes))
    assert torch.equal(found[0][0], found[1][0])
    # Sums over 200 rows, of an estimate that is off by a 255th of 2⁻⁷ of |h| < 5.
    off = 200 * float(g.abs().max()) * (5 * 2.0**-7 / 255 + 5 * 200 * 2.0**-24)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or float((one - other).abs().max()) <= off
    assert found[2][2] <= found[0][2] / 4
    assert found[3][2] <= found[0][2] / 8


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.view(6, 10, WIDTH))[0]
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(h := x.view(6, 10, WIDTH), h, h)[0]
        return out


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


NOTHING: dict[str, tuple[Callable[[], Any], str]] = {
    "doubles": (lambda: perceptron().double(), r"Linear \(float64\), BatchNorm1d \(float64\)"),
    "traced": (lambda: torch.jit.trace(perceptron(), torch.randn(ROWS, WIDTH)), r"Sequential \(scripted\)"),
    "scripted": (lambda: torch.jit.script(perceptron()), r"Sequential \(scripted\)"),
    "LSTM": (Recurrent, "LSTM"),
    "attention": (Attention, "MultiheadAttention"),
    "tanh": (lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)), "Linear"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("scheme", ["int4", "derived"])
@pytest.mark.parametrize("name", NOTHING)
def test_who_compresses_nothing_is_told_once_and_of_what(name: str, scheme: str) -> None:
    make, names = NOTHING[name]
    network = make()
    x = torch.randn(ROWS, WIDTH).to(next(network.parameters()).dtype)
    context = actbench.compress(scheme)
    with pytest.warns(UserWarning, match=f"compress\\('{scheme}'\\) compressed nothing: {names} kept all"):  # noqa: SIM117
        with context:
            network(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with context:
            network(x)
        # Nothing is said of what keeps nothing, or of what is compressed.
        with actbench.compress(scheme), torch.no_grad():
            network(x)
        with actbench.compress(scheme):
            perceptron()(torch.randn(ROWS, WIDTH))


@pytest.mark.parametrize("scheme", NAMES)
def test_contexts_are_copied_and_pickled(scheme: str) -> None:
    if scheme == "offload":
        assert actbench.compress(scheme, resident=[torch.ones(2)]).offload is not None
        return
    torch.manual_seed(0)
    model: Any = perceptron()
    model.context = actbench.compress(scheme, seed=5)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert str(copied.context.scheme) == str(model.context.scheme)
        assert copied.context.rules.seed == 5
    if scheme in ("fp32", "checkpoint"):
        return
    x = torch.randn(ROWS, WIDTH)
    found = []
    for each in (model, copy.deepcopy(model)):
        torch.manual_seed(1)
        with each.context:
            out = each(x)
        out.sum().backward()
        found.append([p.grad for p in each.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with model.context, pytest.raises(UsageError, match="open cannot be copied"):
        copy.deepcopy(model)


def test_a_context_without_a_seed_has_another_one_in_a_copy() -> None:
    context = actbench.compress("derived")
    assert copy.copy(context).rules.seed != context.rules.seed


def _noise(context: Any, send: Any) -> None:
    with context:
        send.send(str(context.scheme))


@pytest.mark.slow
def test_a_context_goes_to_a_spawned_process() -> None:
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe()
    process = spawn.Process(target=_noise, args=(actbench.compress("derived"), send))
    process.start()
    assert receive.recv() == "derived"
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("wrong", [None, 4, b"derived", ["int4"], nn.Linear(1, 1)])
def test_what_is_no_scheme_is_said_so(wrong: Any) -> None:
    with pytest.raises(SchemeError, match=r"is no scheme: give its text, as actbench.compress\('derived'\)"):
        actbench.compress(wrong)


@pytest.mark.parametrize("scheme", ["fp32", *QUANTIZING])
def test_the_ledger_counts_an_edge_index_and_what_nobody_holds(scheme: str) -> None:
    torch.manual_seed(0)
    edge_index, _ = EdgeIndex(torch.randint(0, ROWS, (2, 200)), sparse_size=(ROWS, ROWS)).sort_by("col")
    x, network = torch.randn(ROWS, WIDTH), GCN(WIDTH, 8, 2, 3)
    exclude = [x, edge_index, *network.parameters()]
    counted = []
    for held in (True, False):
        with actbench.compress(scheme, seed=0), Ledger(exclude) as ledger:
            out = network(x, edge_index)
            if not held:
                del out
        counted.append(ledger.total_bytes)
    assert counted[0] == counted[1] > 0
    with actbench.compress(scheme), pytest.raises(UsageError, match="hold the model's output"), Ledger(exclude):
        network(x, edge_index).sum().backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("scheme", ["int4", "derived"])
def test_no_call_of_a_compiled_model_compiles_ours_anew(scheme: str) -> None:
    """Whatever number of contexts and forms of calls, none of our own functions reaches the limit of recompilations."""
    network = perceptron()
    compiled: Any = torch.compile(network, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for _ in range(6):
            with actbench.compress(scheme):
                out = compiled(torch.randn(ROWS, WIDTH))
            out.sum().backward()
    assert type(out.grad_fn).__name__ == "LinearBackward"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("scheme", ["int4", "derived", "bf16"])
@pytest.mark.parametrize("made", ["inside", "outside"])
def test_a_context_inside_of_what_is_compiled_is_refused(made: str, scheme: str) -> None:
    """Torch.compile never enters it: all would be kept, and nobody told."""
    network, context = perceptron(), actbench.compress(scheme)

    def inside(x: Tensor) -> Tensor:
        with actbench.compress(scheme) if made == "inside" else context:
            out: Tensor = network(x)
        return out

    compiled: Any = torch.compile(inside, backend="eager")
    with pytest.raises(UsageError, match="open the context around the call of the compiled function"):
        compiled(torch.randn(ROWS, WIDTH))
    torch._dynamo.reset()


@pytest.mark.slow
def test_network_slimming_ends_with_as_many_small_weights() -> None:
    """An L1 norm on γ: over ten seeds the mean count of small γ is within FP32's spread by seed."""
    torch.set_num_threads(1)

    def small(scheme: str, seed: int) -> int:
        torch.manual_seed(seed)
        x = torch.randn(1000, 16)
        y = (x @ torch.randn(16, 5)).argmax(1)
        layers = [nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Linear(64, 5))
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
        context = actbench.compress(scheme, seed=seed)
        norms = [each for each in layers if isinstance(each, nn.BatchNorm1d)]
        for _ in range(300):
            optimizer.zero_grad()
            with context:
                out = network(x)
            (F.cross_entropy(out, y) + 0.01 * sum(each.weight.abs().sum() for each in norms)).backward()
            optimizer.step()
        return sum(int((each.weight.abs() < 1e-2).sum()) for each in norms)

    counts = {
        scheme: torch.tensor([float(small(scheme, seed)) for seed in range(10)]) for scheme in ("fp32", "derived")
    }
    assert abs(float(counts["derived"].mean() - counts["fp32"].mean())) <= float(counts["fp32"].std())
