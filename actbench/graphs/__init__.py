"""Graphs to train on: a catalogue, loaders of published and own files, imitations, adjacency matrices, samples."""

from actbench.completing import COMPLETING
from actbench.graphs.catalogue import Entry, Metric, Task, catalogue, find

if not COMPLETING:
    from actbench.graphs.adjacency import gcn_adjacency, looped_adjacency, mean_adjacency
    from actbench.graphs.graph import Graph
    from actbench.graphs.loading import load, present, sizes_of
    from actbench.graphs.pulling import pull
    from actbench.graphs.sampling import OutEdges, partition

__all__ = [
    "Entry",
    "Graph",
    "Metric",
    "OutEdges",
    "Task",
    "catalogue",
    "find",
    "gcn_adjacency",
    "load",
    "looped_adjacency",
    "mean_adjacency",
    "partition",
    "present",
    "pull",
    "sizes_of",
]
