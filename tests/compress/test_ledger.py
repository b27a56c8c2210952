import gc
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from actbench.compress import Ledger
from actbench.graphs import mean_adjacency
from actbench.scheme import Scheme
from tests.by_hand.operations import Operation, predict_saved_bytes


def test_a_storage_counts_once_and_in_full_however_it_is_seen() -> None:
    x = torch.randn(10, 8)
    w = torch.randn(4, 4, requires_grad=True)
    with Ledger() as ledger:
        out = F.linear(x[:, :4], w) + F.linear(x[:, 4:], w)
    assert [e.saved_bytes for e in ledger.entries] == [10 * 8 * 4]
    assert out.requires_grad


def test_what_is_excluded_is_not_counted_even_through_a_view() -> None:
    x, w = torch.randn(10, 8), torch.randn(4, 8, requires_grad=True)
    with Ledger([x]) as ledger:
        out = F.linear(x.view(5, 2, 8), w)
    assert ledger.entries == ()
    assert out.requires_grad


def test_a_sparse_matrix_counts_by_its_parts() -> None:
    adjacency = mean_adjacency(torch.tensor([[0, 1, 2], [1, 2, 0]]), 4)
    x = torch.randn(4, 2, requires_grad=True)
    with Ledger() as ledger:
        out = adjacency @ x
    assert ledger.total_bytes == 5 * 4 + 3 * 4 + 3 * 4
    assert out.requires_grad


def test_what_is_gone_at_the_end_of_forward_is_not_kept() -> None:
    x = torch.randn(100, requires_grad=True)
    gc.disable()
    try:
        with Ledger() as ledger:
            x.exp()
            kept = x.sin().exp()
    finally:
        gc.enable()
    # The sine keeps x; the first exponential's result went with it.
    assert [(e.operation, e.call, e.saved_bytes) for e in ledger.entries] == [("sin", 1, 400), ("exp", 2, 400)]
    assert kept.requires_grad


def test_a_later_ledger_leaves_what_an_earlier_one_counted() -> None:
    x = torch.randn(100, requires_grad=True)
    with Ledger([x]) as forward:
        hidden = x.exp()
    with Ledger([x], beyond=forward) as loss:
        out = (hidden * hidden).exp()
    assert forward.total_bytes == 400
    assert loss.total_bytes == 400
    assert out.requires_grad


def test_gradients_are_those_without_a_ledger() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(7, 6)
    network(x).square().sum().backward()
    expected = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    with Ledger():
        out = network(x)
    out.square().sum().backward()
    assert all(
        torch.equal(p.grad, g) for p, g in zip(network.parameters(), expected, strict=True) if p.grad is not None
    )


def test_fp32_keeps_a_tensor_once_for_all_its_readers() -> None:
    shared = [Operation("linear", "x", 10, 4), Operation("linear", "x", 10, 4), Operation("linear", "data", 10, 9)]
    assert predict_saved_bytes(shared, Scheme.parse("fp32"), "cpu") == 160


def test_dropout_alone_knows_the_device() -> None:
    dropout = [Operation("dropout", "mask", 10, 4)]
    fp32, exact = Scheme.parse("fp32"), Scheme.parse("exact")
    assert [predict_saved_bytes(dropout, fp32, device) for device in ("cpu", "cuda")] == [160, 40]
    assert [predict_saved_bytes(dropout, exact, device) for device in ("cpu", "cuda")] == [5, 5]
    seed, large = Scheme.parse("exact:dropout=seed"), [Operation("dropout", "mask", 1000, 128)]
    assert [predict_saved_bytes(dropout, seed, device) for device in ("cpu", "cuda")] == [5, 5]
    assert [predict_saved_bytes(large, seed, device) for device in ("cpu", "cuda")] == [5056, 16]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x * 1)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def test_what_no_torch_function_keeps_is_not_laid_at_ones_door() -> None:
    x = torch.randn(10, requires_grad=True)
    with Ledger([x]) as ledger:
        out = Doubled.apply(x.exp())  # type: ignore[no-untyped-call]
    assert [entry.operation for entry in ledger.entries] == ["exp", "no torch function"]
    assert out.requires_grad
