"""Adjacency matrices for stock PyG layers, with the mean or the symmetric norm in their values.

Each is an `adj_t`: row i holds the weights of the edges that end in node i. Passed to `SAGEConv(aggr="sum")`,
`GCNConv(normalize=False)` or `GCN2Conv(normalize=False)`, it makes the aggregation one sparse product. Attention
weighs edges itself and needs only which there are.
"""

import warnings

import torch
from torch import Tensor


def mean_adjacency(edge_index: Tensor, nodes: int) -> Tensor:
    """Return A with A[i, j] = 1 / indegree(i) for every edge j -> i: A x is the mean over in-neighbours.

    Args:
        edge_index: int64 [2, E] without duplicates.
        nodes: number of nodes N.

    Returns:
        float32 [N, N], `torch.sparse_csr`, indices int32 (int64 from 2**31 edges on); the row of a node without
        in-edges is empty.
    """
    from torch_geometric.utils import degree

    target = edge_index[1]
    return _transposed_csr(edge_index, degree(target, nodes).reciprocal()[target], nodes)


def gcn_adjacency(edge_index: Tensor, nodes: int) -> Tensor:
    """Return D^-1/2 (A + I) D^-1/2 of Kipf & Welling (2017), with one self-loop for every node.

    Args:
        edge_index: int64 [2, E] without duplicates; a self-loop that is there already is not added again.
        nodes: number of nodes N.

    Returns:
        float32 [N, N], `torch.sparse_csr`, indices int32 (int64 from 2**31 edges on); D holds the in-degrees of A + I.
    """
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    looped, values = gcn_norm(edge_index, num_nodes=nodes, dtype=torch.float32)
    return _transposed_csr(looped, values, nodes)


def looped_adjacency(edge_index: Tensor, nodes: int) -> Tensor:
    """Return A + I with 1 for every edge, each node's self-loop once: what attention takes a softmax over.

    Args:
        edge_index: int64 [2, E] without duplicates; a self-loop that is there already is not added again.
        nodes: number of nodes N.

    Returns:
        uint8 [N, N], `torch.sparse_csr`, indices int32 (int64 from 2**31 edges on).
    """
    from torch_geometric.utils import add_remaining_self_loops

    looped, _ = add_remaining_self_loops(edge_index, num_nodes=nodes)
    return _transposed_csr(looped, torch.ones(looped.size(1), dtype=torch.uint8), nodes)


def _transposed_csr(edge_index: Tensor, values: Tensor, nodes: int) -> Tensor:
    from torch_geometric.utils import to_torch_csr_tensor

    from actbench.compress.torch_internals import check_csr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        # They are checked below. Torch's own switch is one for all tensors and threads, and so is its argument
        # `check_invariants`: two that turn it at once leave it on.
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        adjacency: Tensor = to_torch_csr_tensor(edge_index.flip(0), values, size=(nodes, nodes))
        # MKL and cuSPARSE work on 32-bit indices: the product is up to twice as fast, the graph half as large.
        index = torch.int64 if values.numel() > torch.iinfo(torch.int32).max else torch.int32
        rows, columns = adjacency.crow_indices().to(index), adjacency.col_indices().to(index)
        check_csr(rows, columns, adjacency.values(), adjacency.shape)
        return torch.sparse_csr_tensor(rows, columns, adjacency.values(), adjacency.shape, check_invariants=False)
