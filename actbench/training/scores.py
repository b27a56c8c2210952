"""The metrics that data sets are scored by."""

from __future__ import annotations

from torch import Tensor

from actbench.graphs import Metric


def score(metric: Metric, logits: Tensor, y: Tensor) -> float:
    """The score in [0, 1] of `logits` [n, classes] against `y`, int64 [n] or, for micro-F1, 0/1 float [n, classes].

    ROC-AUC takes class 1 of two as the positive one.
    """
    if metric == "accuracy":
        return float((logits.argmax(dim=1) == y).float().mean())
    if metric == "micro-F1":
        predicted, actual = logits > 0, y > 0
        hits = float((predicted & actual).sum())
        return 2 * hits / max(float(predicted.sum() + actual.sum()), 1.0)
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y.cpu().numpy(), (logits[:, 1] - logits[:, 0]).float().cpu().numpy()))
