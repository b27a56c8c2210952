"""`compress` in what people do with a training loop: each way beside a plainer one that must give the same bits."""

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError, checkpoint

import actbench
from actbench.compress import Ledger, attention, functions, norms, ties
from actbench.compress.context import open_compressions
from actbench.errors import NonFiniteError, UsageError
from actbench.graphs import mean_adjacency
from actbench.models import Architecture, Network

# Single functions, and what is left to torch by design: that nothing is compressed is told, and no fault.
pytestmark = pytest.mark.filterwarnings("ignore:.*compressed nothing:UserWarning")

COMPRESSING = ["blockwise-vm", "derived"]
SCHEMES = [*COMPRESSING, "bf16", "checkpoint"]
NODES, FEATURES, CLASSES = 60, 16, 5
ULP = 2.0**-24


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.unique(torch.randint(NODES, (2, 300), generator=generator), dim=1)
    return torch.randn(NODES, FEATURES, generator=generator), mean_adjacency(edge_index, NODES)


def sage(dropout: float = 0.4, seed: int = 7) -> Network:
    torch.manual_seed(seed)
    return Network(Architecture("sage", 3, 24, dropout, True), FEATURES, CLASSES)


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def once(network: nn.Module, scheme: str, seed: int = 1, mask_seed: int = 2) -> list[Tensor]:
    """Output and gradients of one pass: what all the others are held to."""
    network.zero_grad()
    torch.manual_seed(mask_seed)
    with actbench.compress(scheme, seed=seed):
        out = network(*graph())
    out.square().mean().backward()
    return [out.detach(), *gradients(network)]


def assert_nothing_is_open() -> None:
    assert _get_current_function_mode_stack() == []
    assert open_compressions() == []
    assert not torch.is_autocast_enabled("cpu")
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


@contextmanager
def switching_often() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(*functions: Callable[[], None]) -> None:
    """All of them at once; raises what the first of them raises."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# One model, one context, in many ways.


@pytest.mark.parametrize("scheme", ["blockwise-vm", "bf16", "checkpoint"])
def test_gradients_accumulate(scheme: str) -> None:
    network = sage()
    found = []
    for clear in (True, False):
        network.load_state_dict(sage().state_dict())
        network.zero_grad()
        torch.manual_seed(0)
        context = actbench.compress(scheme, seed=4)
        parts = []
        for _ in range(2):
            with context:
                out = network(*graph())
            out.sum().backward()
            parts.append(gradients(network))
            if clear:
                network.zero_grad()
        found.append(parts)
    (first, second), (_, total) = found
    assert not equal(first, second)
    assert equal(total, [a + b for a, b in zip(first, second, strict=True)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_whole_loop_may_stand_inside_of_the_context(scheme: str) -> None:
    """Backward, clipping, the optimizer and an evaluation between, all seen by the context."""
    found = []
    for around in (True, False):
        network = sage()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        torch.manual_seed(1)
        context = actbench.compress(scheme, seed=1)
        with context if around else nullcontext():
            for _ in range(3):
                optimizer.zero_grad()
                with nullcontext() if around else context:
                    out = network(*graph())
                out.float().square().mean().backward()
                nn.utils.clip_grad_norm_(network.parameters(), 0.01)
                optimizer.step()
                network.eval()
                with torch.no_grad():
                    network(*graph())
                network.train()
        assert_nothing_is_open()
        found.append([*network.state_dict().values(), torch.rand(3)])
    assert equal(*found)


@pytest.mark.parametrize("scheme", ["blockwise-vm", "bf16", "checkpoint"])
def test_backward_twice_through_one_graph(scheme: str) -> None:
    network = sage()
    with actbench.compress(scheme, seed=1):
        loss = network(*graph()).square().mean()
    parameters = tuple(network.parameters())
    first, second = (list(torch.autograd.grad(loss, parameters, retain_graph=keep)) for keep in (True, False))
    assert equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


def test_double_backward_is_exact_where_nothing_is_quantized() -> None:
    network = sage(dropout=0.0)
    parameters = tuple(network.parameters())

    def penalty(scheme: str) -> list[Tensor]:
        network.zero_grad()
        with actbench.compress(scheme, seed=1):
            loss = network(*graph()).square().mean()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        sum(each.square().sum() for each in first).backward()  # type: ignore[union-attr]
        return gradients(network)

    assert equal(penalty("checkpoint"), penalty("fp32"))
    assert all(bool(each.isfinite().all()) for each in penalty("bf16"))


class Forces(nn.Module):
    """An energy's gradient by its inputs, taken inside of forward as force fields take it."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Linear(FEATURES, 1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        (force,) = torch.autograd.grad(self.energy(x.requires_grad_().sin()).sum(), x, create_graph=True)
        return force


TWICE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a linear": lambda x, a: nn.Linear(FEATURES, 1)(x),
    "a product": lambda x, a: x @ nn.Parameter(torch.randn(FEATURES, 1)),
    "addmm": lambda x, a: torch.addmm(torch.zeros(1), x, nn.Parameter(torch.randn(FEATURES, 1))),
    "relu": lambda x, a: F.relu(x),
    "leaky relu": lambda x, a: F.leaky_relu(x, 0.2),
    "elu": lambda x, a: F.elu(x),
    "dropout": lambda x, a: F.dropout(x, 0.5),
    "dropped relu": lambda x, a: F.dropout(F.relu(x), 0.5),
    "batch norm": lambda x, a: nn.BatchNorm1d(FEATURES)(x),
    "batch norm and relu": lambda x, a: F.relu(nn.BatchNorm1d(FEATURES)(x)),
    "batch norm in evaluation": lambda x, a: nn.BatchNorm1d(FEATURES).eval()(x),
    "layer norm": lambda x, a: nn.LayerNorm(FEATURES)(x),
    "sparse product": lambda x, a: torch.sparse.mm(a, x, "mean"),
    "sparse product and linear": lambda x, a: nn.Linear(FEATURES, 1)(a @ x),
    "attention": lambda x, a: Network(Architecture("gat", 2, 4, 0.0, True, heads=2), FEATURES, CLASSES)(x, a),
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("scheme", [*COMPRESSING, "int4"])
def test_a_pass_that_is_to_be_differentiated_is_refused_or_has_its_graph(scheme: str, name: str) -> None:
    """Also where each gradient that comes in is a constant: the penalty of a critic would count for nothing, unsaid."""
    x, adjacency = graph()
    x.requires_grad_()
    with actbench.compress(scheme, seed=1):
        out = TWICE[name](x, adjacency)
    nodes, found = [out.grad_fn], set()
    for node in nodes:
        assert node is not None
        found.add(node.name().removesuffix("Backward"))
        nodes += [above for above, _ in node.next_functions if above]
    refused = bool(found & FUNCTIONS)
    assert refused or name in ("elu", "layer norm")
    with pytest.raises(UsageError, match="no second derivative") if refused else nullcontext():
        torch.autograd.grad(out.sum(), x, create_graph=True)


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_gradient_that_is_taken_in_forward_is_refused_there(scheme: str) -> None:
    with pytest.raises(UsageError, match="no second derivative"), actbench.compress(scheme):
        Forces()(*graph())


FUNCTIONS = {
    name
    for module in (functions, ties, attention, norms)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, torch.autograd.Function)
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS - {"Function"}))
def test_every_function_of_ours_guards_its_backward(name: str) -> None:
    owner = next(getattr(module, name) for module in (functions, ties, attention, norms) if hasattr(module, name))
    with pytest.raises(UsageError, match="no second derivative"), torch.enable_grad():
        owner.backward(None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_inference_before_and_within_changes_nothing_of_training(scheme: str) -> None:
    network = sage()
    expected = once(network, scheme)
    network = sage()
    network.zero_grad()
    torch.manual_seed(2)
    context = actbench.compress(scheme, seed=1)
    with context if scheme != "checkpoint" else nullcontext():
        network.eval()
        with torch.inference_mode():
            assert not network(*graph()).requires_grad
    network.train()
    with context:
        network.eval()
        with torch.inference_mode():
            network(*graph())
        network.train()
        out = network(*graph())
    out.square().mean().backward()
    assert equal([out.detach(), *gradients(network)], expected)


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_model_in_evaluation_mode_has_exact_gradients_but_for_weights(scheme: str) -> None:
    """Running statistics are constants: what reaches data and biases meets no estimate, and weights have one."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(), nn.Linear(24, CLASSES)
    )
    network(graph()[0])
    network.eval()
    state = copy.deepcopy(network.state_dict())
    exact, estimates = [], []
    for text in ("fp32", scheme):
        network.zero_grad()
        x = graph()[0].requires_grad_()
        with actbench.compress(text, seed=1):
            out = network(x)
        out.square().sum().backward()
        assert x.grad is not None
        named = dict(network.named_parameters())
        exact.append([out.detach(), x.grad, *gradients(nn.ParameterList(p for n, p in named.items() if "bias" in n))])
        estimates.append(gradients(nn.ParameterList(p for n, p in named.items() if "weight" in n)))
    assert equal(*exact)
    assert len(estimates[0]) == len(estimates[1]) == 3
    assert not any(torch.equal(one, other) for one, other in zip(*estimates, strict=True))
    assert equal(list(network.state_dict().values()), list(state.values()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_backward_in_another_thread(scheme: str) -> None:
    network = sage()
    expected = once(network, scheme)
    network = sage()
    torch.manual_seed(2)
    with actbench.compress(scheme, seed=1):
        out = network(*graph())
    in_threads(lambda: out.square().mean().backward())
    assert equal([out.detach(), *gradients(network)], expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_of_a_model_changes_but_its_numbers(scheme: str) -> None:
    """Modules, names and types of a state dict, copies and pickles, made while the context is open or after it."""
    network, plain = sage(), sage()
    members = {name: set(vars(module)) for name, module in plain.named_modules()}
    once(plain, "fp32")
    torch.manual_seed(2)
    with actbench.compress(scheme, seed=1):
        out = network(*graph())
        copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
    out.square().mean().backward()
    copies += [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    assert {name: set(vars(module)) for name, module in network.named_modules()} == members
    file.seek(0)
    for state in (torch.load(file, weights_only=True), *(each.state_dict() for each in (network, *copies))):
        assert list(state) == list(plain.state_dict())
        for one, other in zip(state.values(), plain.state_dict().values(), strict=True):
            assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape)
            # bfloat16 alone makes other statistics of a batch.
            assert scheme == "bf16" or torch.equal(one, other)
    expected = once(sage(), scheme)
    for each in copies:
        each.load_state_dict(sage().state_dict())
        assert equal(once(each, scheme), expected)


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_parameters_given_from_outside(scheme: str) -> None:
    network = sage()
    expected = once(network, scheme)
    network = sage()
    given = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    torch.manual_seed(2)
    with actbench.compress(scheme, seed=1):
        out = torch.func.functional_call(network, given, graph())
    out.square().mean().backward()
    found = [p.grad for p in given.values() if p.grad is not None]
    assert equal([out.detach(), *found], expected)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_weight_of_two_layers_has_the_sum_of_their_gradients(scheme: str) -> None:
    class Tied(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.first = self.second = nn.Linear(FEATURES, FEATURES)
            self.norm = nn.BatchNorm1d(FEATURES)
            if not tied:
                self.second = copy.deepcopy(self.first)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            for layer in (self.first, self.second):
                x = F.dropout(F.relu(self.norm(layer(adjacency @ x))), 0.4)
            return x

    (out, *tied), (out2, *apart) = once(Tied(True), scheme), once(Tied(False), scheme)
    assert torch.equal(out, out2)
    weight, bias, gamma, beta, weight2, bias2 = apart[0], apart[1], *apart[-2:], *apart[2:4]
    assert equal(tied, [weight + weight2, bias + bias2, gamma, beta])


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_model_called_twice_in_a_pass(scheme: str) -> None:
    """Its gradients are those of two copies, since the second call has its own noise and mask."""
    network, (x, adjacency) = sage(), graph()
    torch.manual_seed(2)
    with actbench.compress(scheme, seed=1):
        outs = network(x, adjacency), network(-x, adjacency)
    (outs[0] * outs[1]).mean().backward()
    copies = sage(), sage()
    # The second finds the running statistics that the first left.
    torch.manual_seed(2)
    with actbench.compress(scheme, seed=1):
        others = [copies[0](x, adjacency)]
        copies[1].load_state_dict(copies[0].state_dict())
        others.append(copies[1](-x, adjacency))
    (others[0] * others[1]).mean().backward()
    assert equal(list(outs), others)
    assert equal(gradients(network), [a + b for a, b in zip(*map(gradients, copies), strict=True)])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_hooks_of_modules_see_what_they_see_without_compression(scheme: str) -> None:
    """Forward hooks and full backward hooks on every leaf; only gradients by estimates differ."""
    expected = once(sage(), scheme)

    def watch(network: nn.Module) -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        for name, module in network.named_modules():
            if next(module.children(), None) is None:
                module.register_forward_hook(lambda *_, name=name: seen.append((name, 0)))
                module.register_full_backward_hook(
                    lambda _module, _by_input, by_output, name=name: seen.append((name, by_output[0].numel()))
                )
        return seen

    hooked, plain = sage(), sage()
    seen, plainly_seen = watch(hooked), watch(plain)
    found = once(hooked, scheme)
    once(plain, "fp32")
    assert sorted(set(seen)) == sorted(set(plainly_seen))
    assert torch.equal(found[0], expected[0])
    assert len(found) == len(expected)
    if scheme != "derived":
        assert equal(found, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_clipped_and_stepped_in_backward_itself(scheme: str) -> None:
    """Each parameter is updated as soon as its gradient is there, while others are still to come."""
    found = []
    for within in (True, False):
        network = sage()

        def update(p: Tensor) -> None:
            assert p.grad is not None
            with torch.no_grad():
                p -= 0.1 * p.grad.clamp(-1e-3, 1e-3)

        if within:
            for p in network.parameters():
                p.register_post_accumulate_grad_hook(update)
        once(network, scheme)
        if not within:
            for p in network.parameters():
                update(p)
        found.append(list(network.state_dict().values()))
    assert equal(*found)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_optimizer_that_asks_for_the_loss_again(scheme: str) -> None:
    """L-BFGS: every gradient it is given is that of a fresh context which has come as far in its noise."""
    network = sage(dropout=0.0)
    context = actbench.compress(scheme, seed=1)
    asked: list[tuple[dict[str, Tensor], list[Tensor]]] = []

    def closure() -> float:
        optimizer.zero_grad()
        state = copy.deepcopy(network.state_dict())
        with context:
            out = network(*graph())
        loss = out.square().mean()
        loss.backward()
        asked.append((state, gradients(network)))
        return float(loss.detach())

    optimizer = torch.optim.LBFGS(network.parameters(), lr=0.1, max_iter=3)
    for _ in range(2):
        optimizer.step(closure)
    assert len(asked) > 2
    again, fresh = sage(dropout=0.0), actbench.compress(scheme, seed=1)
    for state, expected in asked:
        again.load_state_dict(state)
        again.zero_grad()
        with fresh:
            out = again(*graph())
        out.square().mean().backward()
        assert equal(gradients(again), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_frozen_between_forward_and_backward(scheme: str) -> None:
    expected = once(sage(), scheme)[1:]
    network = sage()
    torch.manual_seed(2)
    with actbench.compress(scheme, seed=1):
        out = network(*graph())
    frozen = {id(p) for p in network.convs[1].parameters()}
    network.convs[1].requires_grad_(False)
    if scheme == "checkpoint":
        # What runs again now keeps less than it did then.
        with pytest.raises(CheckpointError, match="different number of tensors"):
            out.square().mean().backward()
        return
    out.square().mean().backward()
    for p, gradient in zip(network.parameters(), expected, strict=True):
        assert (p.grad is None) if id(p) in frozen else (p.grad is not None and torch.equal(p.grad, gradient))


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_channel_that_is_pruned_in_between_still_has_a_gradient(scheme: str) -> None:
    """What is known of a batch norm's weight from the pass before is no longer so."""

    def prune(network: Network) -> Network:
        norm: Any = network.norms[0]
        with torch.no_grad():
            norm.weight[3], norm.bias[3] = 0.0, 1.0
        return network

    network = sage()
    once(network, scheme)
    found, expected = once(prune(network), scheme), once(prune(sage()), scheme)
    assert equal(found, expected)
    gradient = network.norms[0].weight.grad
    assert isinstance(gradient, Tensor)
    assert bool(gradient.all())


EMPTY: dict[str, Callable[[], Tensor]] = {
    "no rows": lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))(torch.randn(0, 16)),
    "no columns": lambda: nn.Sequential(nn.Linear(16, 0), nn.ELU(), nn.Linear(0, 3))(torch.randn(4, 16)),
    "no columns of a product": lambda: nn.Linear(16, 0)(graph()[1] @ graph()[0]),
    "no rows of a product": lambda: nn.Linear(16, 3)(torch.empty(0, 5).to_sparse_csr() @ torch.randn(5, 16)),
    "no rows to average": lambda: nn.Linear(16, 3)(
        torch.sparse.mm(torch.empty(0, 5).to_sparse_csr(), torch.randn(5, 16), "mean")
    ),
    "no rows of a rectified product": lambda: nn.Linear(16, 3)(
        torch.empty(0, 5).to_sparse_csr() @ nn.Linear(4, 16)(torch.randn(5, 4)).relu()
    ),
}


@pytest.mark.parametrize("scheme", COMPRESSING)
@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_batches_of_nothing(name: str, scheme: str) -> None:
    out: Tensor | None = None
    with actbench.compress(scheme):
        out = EMPTY[name]()
    out.sum().backward()
    assert out.numel() == 0 or name == "no columns"


@pytest.mark.parametrize("scheme", COMPRESSING)
@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_for_batch_norm_are_torchs_error(rows: int, scheme: str) -> None:
    def forward(text: str) -> None:
        with actbench.compress(text):
            nn.BatchNorm1d(4)(nn.Linear(3, 4)(torch.randn(rows, 3))).sum().backward()

    said = []
    for text in ("fp32", scheme):
        try:
            forward(text)
        except ValueError as error:
            said.append(str(error))
    assert len(said) in (0, 2)
    assert len(set(said)) == len(said) // 2
    assert_nothing_is_open()


# Contexts inside, beside and after each other.


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_whatever_ends_a_forward_pass_leaves_nothing_open(error: type[BaseException], scheme: str) -> None:
    expected = once(sage(), scheme)

    def fail(*_: Any) -> None:
        raise error

    network = sage()
    context = actbench.compress(scheme, seed=9)
    hook = network.convs[1].register_forward_hook(fail)
    with pytest.raises(error), Ledger(), context, Ledger():
        network(*graph())
    assert_nothing_is_open()
    hook.remove()
    with context:
        out = network(*graph())
    out.sum().backward()
    network.load_state_dict(sage().state_dict())
    assert equal(once(network, scheme), expected)


@pytest.mark.parametrize("ledger", [False, True])
def test_what_cannot_be_packed_at_the_very_end_leaves_nothing_open(ledger: bool) -> None:
    """A batch norm's output that no ReLU took is packed when the context or the ledger in it closes."""
    norm, x = nn.BatchNorm1d(4), torch.randn(8, 4)

    def forward() -> Tensor:
        with actbench.compress("derived"), Ledger() if ledger else nullcontext():
            y: Tensor = norm(x * torch.nan)
        return y

    with pytest.raises(NonFiniteError, match="batch_norm 1"):
        forward()
    assert_nothing_is_open()
    assert type(torch.ones(2, requires_grad=True).relu().grad_fn).__name__ == "ReluBackward0"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_context_is_open_once_at_a_time(scheme: str) -> None:
    context = actbench.compress(scheme)

    def enter() -> None:
        with context:
            pass

    with context:
        with pytest.raises(UsageError, match="open already"):
            enter()
        with pytest.raises(UsageError, match="open already"):
            in_threads(enter)
        assert torch.is_autocast_enabled("cpu") == (scheme == "bf16")
        with torch.no_grad():
            sage()(*graph())
    in_threads(enter)
    assert_nothing_is_open()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contexts_that_end_in_another_order_are_refused(scheme: str) -> None:
    """Of a generator that hands over inside of one; the caller's would go on under the generator's scheme."""

    def batches() -> Iterator[None]:
        with actbench.compress(scheme):
            with torch.no_grad():
                sage()(*graph())
            yield

    generator = batches()
    next(generator)
    outer = actbench.compress("int8")
    outer.__enter__()
    with pytest.raises(UsageError, match="in another order"):
        next(generator)
    assert_nothing_is_open()
    with pytest.raises(UsageError, match="not open in this thread"):
        outer.__exit__(None, None, None)


def test_a_context_is_left_in_the_thread_that_entered_it() -> None:
    context = actbench.compress("int8")
    with context, pytest.raises(UsageError, match="not open in this thread"):
        in_threads(lambda: context.__exit__(None, None, None))
    assert_nothing_is_open()


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_seed_is_any_integer(scheme: str) -> None:
    expected = once(sage(), scheme, 3)
    for seed in (np.int64(3), np.uint8(3), torch.tensor(3), 3 + 2**64):
        assert equal(once(sage(), scheme, seed), expected)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float"):
        actbench.compress(scheme, seed=3.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["blockwise-vm", "bf16", "checkpoint"])
def test_two_models_in_one_context(scheme: str) -> None:
    """The first is as if alone, the second but for its noise."""
    one, other = sage(dropout=0.0), sage(dropout=0.0, seed=8)
    alone = [once(network, scheme) for network in (one, other)]
    one.zero_grad()
    other.zero_grad()
    with actbench.compress(scheme, seed=1):
        outs = one(*graph()), other(*graph())
    (outs[0].square().mean() + outs[1].square().mean()).backward()
    assert equal([outs[0].detach(), *gradients(one)], alone[0])
    assert torch.equal(outs[1], alone[1][0])
    assert equal(gradients(other), alone[1][1:]) == (scheme != "blockwise-vm")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_train_side_by_side_as_one_after_the_other(scheme: str) -> None:
    """Each a model under a scheme of its own: one's forward meets another's backward."""

    def train(network: Network, scheme: str) -> None:
        context = actbench.compress(scheme, seed=3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(15):
            optimizer.zero_grad()
            with context:
                out = network(*graph())
            out.square().mean().backward()
            optimizer.step()

    # All threads draw masks from one generator, so there are none.
    schemes = [scheme, scheme, "blockwise-vm", "fp32"]
    together, alone = ([sage(0.0, seed) for seed in range(4)] for _ in range(2))
    for network, each in zip(alone, schemes, strict=True):
        train(network, each)
    with switching_often():
        in_threads(*(lambda n=n, s=s: train(n, s) for n, s in zip(together, schemes, strict=True)))
    for one, other in zip(together, alone, strict=True):
        assert equal(list(one.state_dict().values()), list(other.state_dict().values()))


@pytest.mark.parametrize("scheme", [*COMPRESSING, "bf16"])
def test_forward_goes_on_while_another_thread_goes_backward(scheme: str) -> None:
    """Through graphs of the same context, as a pipeline has them."""
    network, context = sage(0.0), actbench.compress(scheme, seed=1)
    parameters = tuple(network.parameters())
    losses: Queue[Tensor | None] = Queue()
    found: list[list[Tensor]] = []

    def backward() -> None:
        while (loss := losses.get()) is not None:
            found.append(list(torch.autograd.grad(loss, parameters)))

    def forward() -> None:
        for _ in range(40):
            with context:
                out = network(*graph())
            losses.put(out.square().mean())
        losses.put(None)

    with switching_often():
        in_threads(backward, forward)
    again = actbench.compress(scheme, seed=1)
    for each in found:
        with again:
            loss = network(*graph()).square().mean()
        assert equal(each, list(torch.autograd.grad(loss, parameters)))
    assert len(found) == 40


@pytest.mark.parametrize("scheme", SCHEMES)
def test_several_threads_go_backward_through_one_graph(scheme: str) -> None:
    network = sage()
    parameters = tuple(network.parameters())
    with actbench.compress(scheme, seed=1):
        loss = network(*graph()).square().mean()
    expected = list(torch.autograd.grad(loss, parameters, retain_graph=True))

    def backward() -> None:
        for _ in range(20):
            assert equal(list(torch.autograd.grad(loss, parameters, retain_graph=True)), expected)

    with switching_often():
        in_threads(backward, backward, backward)


def test_a_thread_that_inherits_a_context_keeps_all() -> None:
    """As autograd's threads on a GPU do: torch hands them its modes, and they belong to another thread."""
    context = actbench.compress("exact")
    kinds: list[str] = []

    def inherit() -> None:
        _push_mode(context)
        try:
            kinds.append(type(torch.ones(8, requires_grad=True).relu().grad_fn).__name__)
        finally:
            _pop_mode()

    with context:
        in_threads(inherit)
    assert kinds == ["ReluBackward0"]


# What torch has of its own.


@pytest.mark.parametrize("scheme", COMPRESSING)
@pytest.mark.parametrize("within", [True, False])
def test_what_torchs_checkpoint_covers_is_exact(within: bool, scheme: str) -> None:
    """Backward inside of the context too: run again, a call would be packed with other noise than it is read with."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4))
    x = torch.randn(50, 64, requires_grad=True)
    found = []
    for reentrant in (None, False, True):
        network.zero_grad()
        torch.manual_seed(1)
        with actbench.compress(scheme if reentrant is not None else "fp32", seed=1):
            out = network(x) if reentrant is None else checkpoint(network, x, use_reentrant=reentrant)
            loss = out.square().sum()
            if within:
                loss.backward()
        if not within:
            loss.backward()
        assert_nothing_is_open()
        found.append(gradients(network))
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("scheme", ["bf16", "checkpoint"])
def test_torchs_checkpoint_inside_of_what_quantizes_nothing(scheme: str, reentrant: bool) -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again = [False]
            self.inner = nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Dropout(0.4))
            self.last = nn.Linear(24, CLASSES)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            x.requires_grad_()
            hidden = checkpoint(self.inner, x, use_reentrant=reentrant) if self.again[0] else self.inner(x)
            out: Tensor = actbench.run_layer(self, lambda h: self.last(adjacency @ h), hidden)
            return out

    torch.manual_seed(0)
    network = Again()
    found = []
    for again in (False, True):
        network.again[0] = again
        found.append(once(network, scheme))
    assert equal(*found)


class Dense(nn.Module):
    """A network without a sparse product, which torch's own autocast has none of on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Sequential(nn.Linear(FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.4))
        self.last = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        out: Tensor = self.last(actbench.run_layer(self, self.first, x.requires_grad_()))
        return out


@pytest.mark.parametrize("scheme", [*COMPRESSING, "checkpoint"])
def test_autocast_around_all_of_a_step(scheme: str) -> None:
    """Forward is autocast's bit for bit; the last layer's bias meets no estimate in backward."""
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = once(Dense(), "fp32"), once(Dense(), scheme)
    assert torch.equal(found[0], expected[0])
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    assert torch.equal(found[-1], expected[-1])
    assert all(bool(each.isfinite().all()) and bool(each.any()) for each in found[1:])
    assert equal(found, expected) == (scheme == "checkpoint")


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_tensors_hooks_of_ones_own(scheme: str) -> None:
    expected = once(sage(), scheme)
    network = sage()
    packed: list[torch.Size] = []

    def pack(tensor: Tensor) -> Any:
        packed.append(tensor.shape)
        return tensor.layout, tensor.detach().clone()

    torch.manual_seed(2)
    with (
        actbench.compress(scheme, seed=1),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[1]),
        torch.autograd.detect_anomaly(check_nan=True),
    ):
        out = network(*graph())
    out.square().mean().backward()
    assert packed
    assert equal([out.detach(), *gradients(network)], expected)


class Inside(nn.Module):
    """A network that opens its context by itself, whoever runs it."""

    def __init__(self, scheme: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        self.context = actbench.compress(scheme, seed=1)

    def forward(self, x: Tensor) -> Tensor:
        with self.context:
            out: Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_context_opened_inside_of_what_runs_again(scheme: str) -> None:
    """Packed in backward with its next noise and read with its first, the gradient would be anything at all."""
    network, x = Inside(scheme), torch.randn(50, 64, requires_grad=True)
    network.layers(x).square().sum().backward()
    exact = gradients(network)
    network.zero_grad()
    checkpoint(network, x, use_reentrant=True).square().sum().backward()
    assert equal(gradients(network), exact)
    network.zero_grad()
    checkpoint(network, x, use_reentrant=False).square().sum().backward()
    assert equal(gradients(network), exact)


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda network, x: torch.func.grad(lambda x: network(x).square().sum())(x),
    "grad of parameters": lambda network, x: torch.func.grad(
        lambda given: torch.func.functional_call(network, given, (x,)).square().sum()
    )(dict(network.named_parameters())),
    "vmap": lambda network, x: torch.func.vmap(network)(x.view(6, 10, FEATURES)),
    "jvp": lambda network, x: torch.func.jvp(network, (x,), (torch.ones_like(x),)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("scheme", COMPRESSING)
def test_transforms_of_torch_func_are_left_to_torch(scheme: str, name: str) -> None:
    """They have tensors without memory: all stays as it is, and exact."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Linear(24, CLASSES)), graph()[0]
    expected = tree_leaves(TRANSFORMS[name](network, x))
    with actbench.compress(scheme):
        assert equal(tree_leaves(TRANSFORMS[name](network, x)), expected)
        out = network(x)
    # Many gradients at once, through what was compressed, are refused; one after the other they are not.
    parameters = list(network.parameters())
    with pytest.raises(RuntimeError):
        torch.autograd.grad(out.sum(0), parameters, torch.eye(CLASSES), retain_graph=True, is_grads_batched=True)
    torch.autograd.grad(out.sum(0), parameters, torch.eye(CLASSES)[0])


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_forward_mode_is_left_to_torch(scheme: str) -> None:
    """Functions of ours have no derivative of that kind."""

    def tangent() -> Tensor:
        network, x = nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU()), graph()[0]
        with forward_ad.dual_level():
            out = network(forward_ad.make_dual(x, torch.ones_like(x)))
            found: Tensor = forward_ad.unpack_dual(out).tangent
        return found

    torch.manual_seed(0)
    expected = tangent()
    torch.manual_seed(0)
    with actbench.compress(scheme):
        assert torch.equal(tangent(), expected)


@pytest.mark.parametrize("scheme", COMPRESSING)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_tensors_without_values_of_their_own_are_left_to_torch(scheme: str) -> None:
    """Fake ones, by which tools reckon a model's memory, and nested ones."""
    with FakeTensorMode(), actbench.compress(scheme):
        network = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
        out = network(torch.randn(6, 8))
    assert isinstance(out, FakeTensor)
    layer, rows = nn.Linear(8, 4), torch.randn(5, 8)
    found = []
    for each in ("fp32", scheme):
        layer.zero_grad()
        with actbench.compress(each):
            nested = layer(torch.nested.nested_tensor([rows[:2], rows[2:]])).relu()
        nested.to_padded_tensor(0.0).sum().backward()
        found.append(gradients(layer))
    assert equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_model_gives_the_same(scheme: str) -> None:
    expected = once(sage(), scheme)
    network = sage()
    compiled: Any = torch.compile(network, backend="eager")
    assert equal(once(compiled, scheme), expected)


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    """Both end with the mean of what each would have alone, to the bit, and their noise is not the same."""
    command = [sys.executable, "-m", "tests.compress.two_processes"]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    (one, noise), (other, noise2) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for scheme, (together, alone) in one.items():
        together2, alone2 = other[scheme]
        assert equal(together, together2)
        # Halves are exact, and a sum of two has one rounding in either order.
        assert equal(together, [(a + b) / 2 for a, b in zip(alone, alone2, strict=True)])
        assert not equal(alone, alone2)
    assert not torch.equal(noise, noise2)
