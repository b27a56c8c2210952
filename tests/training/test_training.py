from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from actbench.errors import DataError, UsageError
from actbench.graphs import Graph, catalogue, load
from actbench.models import Model
from actbench.training import Recipe, Sampler, Trainer, recipe_for
from actbench.training.scores import score

CPU = torch.device("cpu")


def tiny(task: str = "single-label") -> Graph:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (90,), generator=generator)
    x = torch.nn.functional.one_hot(y, 3).float() + 0.3 * torch.randn(90, 3, generator=generator)
    edge_index = torch.unique(torch.randint(90, (2, 900), generator=generator), dim=1)
    edge_index = edge_index[:, y[edge_index[0]] == y[edge_index[1]]]
    nodes = torch.randperm(90, generator=generator)
    if task == "multi-label":
        return Graph(
            "tiny", x, edge_index, torch.nn.functional.one_hot(y, 3).float(), nodes[:50], nodes[50:70], nodes[70:],
            3, "multi-label", "micro-F1",
        )  # fmt: skip
    return Graph("tiny", x, edge_index, y, nodes[:50], nodes[50:70], nodes[70:], 3, "single-label", "accuracy")


MODELS: tuple[Model, ...] = ("sage", "gcn", "gcnii", "gat")
SAMPLERS: tuple[Sampler, ...] = ("full", "saint", "cluster")


def small(model: Model, sampler: Sampler = "full", **values: Any) -> Recipe:
    """A recipe whose samples are a part of the tiny graph."""
    sizes: dict[str, dict[str, int]] = {
        "full": {},
        "saint": {"roots": 20, "walk_length": 2, "steps": 3},
        "cluster": {"parts": 6, "parts_per_batch": 2},
    }
    # What hides labels and edges makes learning slow.
    gentle = {"layers": 2, "dropout": 0.2}
    return recipe_for("own.npz", model, sampler).overridden(hidden=16, **gentle | sizes[sampler] | values)


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("model", MODELS)
def test_training_learns(task: str, model: Model, sampler: Sampler) -> None:
    torch.manual_seed(0)
    trainer = Trainer(tiny(task), small(model, sampler), CPU)
    losses = [trainer.epoch() for _ in range(40)]
    # Batch norm over a sample of some twenty nodes is noise that keeps the loss up, though every answer is right.
    assert losses[-1] < losses[0] / (2 if sampler == "full" else 1)
    assert trainer.evaluate().train > 0.8


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_seeds_train_alike(sampler: Sampler) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        trainer = Trainer(tiny(), small("gat", sampler, labels_as_input=True), CPU)
        results.append([trainer.epoch() for _ in range(5)])
    assert results[0] == results[1]


def test_a_step_is_an_epoch_of_full_batches() -> None:
    results = []
    for method in (Trainer.step, Trainer.epoch):
        torch.manual_seed(3)
        trainer = Trainer(tiny(), small("sage"), CPU)
        results.append([method(trainer) for _ in range(3)])
    assert results[0] == results[1]


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
@pytest.mark.parametrize("sampler", ["saint", "cluster"])
def test_a_sample_is_the_graph_between_its_nodes(sampler: Sampler, task: str) -> None:
    """Features are all different here: they tell which node a row is."""
    graph = tiny(task)
    edges = set(map(tuple, graph.edge_index.t().tolist()))
    names = {tuple(row): node for node, row in enumerate(graph.x.tolist())}
    train = set(graph.train.tolist())
    torch.manual_seed(0)
    trainer = Trainer(graph, small("gat", sampler), CPU)
    trained = []
    batches = list(trainer.batches())
    assert len(batches) == 3
    for batch in batches:
        nodes = [names[tuple(row)] for row in batch.x.tolist()]
        assert len(set(nodes)) == len(nodes) < 90
        assert torch.equal(batch.y, graph.y[nodes])
        # GAT's adjacency has a row for each target, and everybody's self-loop.
        found = {(nodes[s], nodes[t]) for t, s in batch.adjacency.to_dense().nonzero().tolist()}
        inside = {(s, t) for s, t in edges if s in nodes and t in nodes}
        assert found == inside | {(node, node) for node in nodes}
        here = [nodes[place] for place in batch.train.tolist()]
        assert set(here) == train & set(nodes)
        trained += here
    if sampler == "cluster":
        assert sorted(trained) == sorted(train)


def test_samples_without_training_nodes_are_no_steps() -> None:
    graph = tiny()
    torch.manual_seed(0)
    one = replace(graph, train=graph.train[:1])
    trainer = Trainer(one, small("sage", "cluster", parts_per_batch=1), CPU)
    assert [batch.train.numel() for batch in trainer.batches()] == [1]


def test_walks_that_miss_all_training_nodes_are_walked_anew() -> None:
    """Without edges nine roots are at most nine of 90 nodes; one draw in ten meets the training node."""
    alone = replace(tiny(), edge_index=torch.zeros(2, 0, dtype=torch.int64), train=tiny().train[:1])
    torch.manual_seed(0)
    trainer = Trainer(alone, small("sage", "saint", roots=9, steps=1, batch_norm=False), CPU)
    assert all([batch.train.numel() for batch in trainer.batches()] == [1] for _ in range(20))
    trainer = Trainer(alone, small("sage", "saint", roots=1, steps=1, batch_norm=False), CPU)
    trainer._trains.zero_()
    with pytest.raises(DataError, match="take more roots, steps or parts"):
        trainer.epoch()


def test_a_sample_of_one_node_is_refused_where_batch_norm_would_divide_by_its_variance() -> None:
    alone = replace(tiny(), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    torch.manual_seed(0)
    with pytest.raises(DataError, match="a sample has one node"):
        Trainer(alone, small("sage", "saint", roots=1, steps=1), CPU).epoch()
    Trainer(alone, small("sage", "saint", roots=1, steps=1, batch_norm=False), CPU).epoch()


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_hidden_labels_are_predicted_and_the_others_are_input(task: str, sampler: Sampler) -> None:
    graph = tiny(task)
    torch.manual_seed(0)
    trainer = Trainer(graph, small("gat", sampler, labels_as_input=True, mask_rate=0.25), CPU)
    names = {tuple(row): node for node, row in enumerate(graph.x.tolist())}
    onehot = torch.nn.functional.one_hot(graph.y, 3).float() if graph.y.dim() == 1 else graph.y
    hidden: list[set[int]] = []
    for batch in [*trainer.batches(), *trainer.batches()]:
        features, labels = batch.x.split(3, dim=1)
        nodes = torch.tensor([names[tuple(row)] for row in features.tolist()])
        given = set(nodes[labels.sum(1) > 0].tolist())
        predicted = set(nodes[batch.train].tolist())
        assert torch.equal(labels[labels.sum(1) > 0], onehot[nodes[labels.sum(1) > 0]])
        assert not given & predicted
        assert given | predicted == set(graph.train.tolist()) & set(nodes.tolist())
        assert len(predicted) == len(given | predicted) - int(0.75 * len(given | predicted))
        hidden.append(predicted)
    assert hidden[0] != hidden[len(hidden) // 2]
    inputs: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    trainer.evaluate()
    expected = torch.zeros(90, 3)
    expected[graph.train] = onehot[graph.train]
    assert torch.equal(inputs[0], torch.cat((graph.x, expected), dim=1))


def test_the_optimizer_is_the_recipes() -> None:
    kinds = [
        type(Trainer(tiny(), recipe_for("own.npz", "sage").overridden(optimizer=name), CPU).optimizer)
        for name in ("adam", "rmsprop")
    ]
    assert kinds == [torch.optim.Adam, torch.optim.RMSprop]


def test_a_loss_that_is_not_finite_changes_no_weight() -> None:
    graph = tiny()
    graph.x[graph.train[0]] = torch.inf
    trainer = Trainer(graph, recipe_for("cora", "gcn"), CPU)
    before = [p.clone() for p in trainer.network.parameters()]
    with pytest.raises(FloatingPointError, match="training loss"):
        trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_the_gradient_norm_is_clipped() -> None:
    torch.manual_seed(0)
    trainer = Trainer(tiny(), recipe_for("arxiv", "sage").overridden(clip=1e-3), CPU)
    trainer.step()
    norm = torch.stack([p.grad.square().sum() for p in trainer.network.parameters() if p.grad is not None]).sum().sqrt()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_papers_settings() -> None:
    arxiv = recipe_for("ogbn-arxiv", "sage")
    assert recipe_for("synthetic:arxiv@0.1", "sage") == arxiv
    assert arxiv.as_record() == {
        "model": "sage", "layers": 3, "hidden": 128, "dropout": 0.5, "batch_norm": True, "learning_rate": 0.01,
        "weight_decay": 0.0, "epochs": 500, "clip": 0.5,
        "source": "EXACT and i-EXACT, the authors' configuration files",
    }  # fmt: skip
    products = recipe_for("ogbn-products", "sage")
    assert (products.architecture.batch_norm, products.learning_rate) == (False, 0.002)
    flickr, yelp = recipe_for("flickr", "gcn"), recipe_for("yelp", "gcn")
    assert (flickr.architecture.layers, flickr.architecture.hidden, flickr.architecture.dropout) == (2, 256, 0.3)
    assert (yelp.architecture.hidden, yelp.architecture.dropout, yelp.epochs) == (512, 0.1, 500)


PAPERS: list[tuple[str, Model, Sampler, dict[str, Any]]] = [
    ("ogbn-arxiv", "gcnii", "full", {
        "layers": 16, "hidden": 256, "dropout": 0.1, "input_dropout": 0.1, "batch_norm": True, "learning_rate": 0.001,
        "epochs": 1000, "alpha": 0.5, "residual": True,
    }),
    ("arxiv", "gat", "full", {
        "layers": 3, "hidden": 128, "heads": 3, "dropout": 0.75, "input_dropout": 0.25, "edge_dropout": 0.7,
        "batch_norm": True, "learning_rate": 0.002, "optimizer": "rmsprop", "epochs": 2000, "labels_as_input": True,
        "mask_rate": 0.5,
    }),
    ("ogbn-arxiv", "sage", "saint", {
        "layers": 3, "hidden": 256, "dropout": 0.5, "batch_norm": True, "learning_rate": 0.01, "epochs": 500,
        "sampler": "saint", "walk_length": 3, "roots": 10_000, "steps": 5,
    }),
    ("synthetic:flickr@0.1", "gcnii", "full", {
        "layers": 8, "hidden": 256, "dropout": 0.5, "batch_norm": True, "learning_rate": 0.01, "epochs": 400,
        "alpha": 0.1, "theta": 0.5,
    }),
    ("flickr", "sage", "cluster", {
        "layers": 2, "hidden": 256, "dropout": 0.2, "batch_norm": True, "learning_rate": 0.01, "epochs": 15,
        "sampler": "cluster", "parts": 1000, "parts_per_batch": 30,
    }),
    ("flickr", "sage", "saint", {
        "layers": 2, "hidden": 256, "dropout": 0.2, "batch_norm": True, "learning_rate": 0.01, "epochs": 15,
        "sampler": "saint", "walk_length": 2, "roots": 6000, "steps": 5,
    }),
    ("reddit", "gcnii", "full", {
        "layers": 4, "hidden": 256, "dropout": 0.5, "batch_norm": True, "learning_rate": 0.01, "epochs": 400,
        "alpha": 0.1, "theta": 0.5,
    }),
    ("yelp", "gcnii", "full", {
        "layers": 4, "hidden": 512, "dropout": 0.0, "batch_norm": True, "learning_rate": 0.01, "epochs": 500,
        "alpha": 0.1, "theta": 0.5,
    }),
    ("ogbn-products", "sage", "cluster", {
        "layers": 3, "hidden": 256, "dropout": 0.5, "batch_norm": False, "learning_rate": 0.001, "epochs": 50,
        "sampler": "cluster", "parts": 15_000, "parts_per_batch": 32,
    }),
    ("ogbn-products", "sage", "saint", {
        "layers": 3, "hidden": 256, "dropout": 0.5, "batch_norm": False, "learning_rate": 0.01, "epochs": 20,
        "sampler": "saint", "walk_length": 3, "roots": 20_000, "steps": 30,
    }),
]  # fmt: skip


@pytest.mark.parametrize(("dataset", "model", "sampler", "expected"), PAPERS)
def test_papers_settings_of_other_systems(
    dataset: str, model: Model, sampler: Sampler, expected: dict[str, Any]
) -> None:
    record = recipe_for(dataset, model, sampler).as_record()
    assert record.pop("source").startswith("EXACT and i-EXACT, the authors' configuration files")
    assert record == {"model": model, "weight_decay": 0.0, "clip": 0.5, **expected}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_data_set_has_a_recipe_for_every_system(model: Model, sampler: Sampler) -> None:
    for entry in catalogue():
        recipe = recipe_for(entry.name, model, sampler)
        a = recipe.architecture
        assert (a.alpha is not None) == (model == "gcnii")
        assert (a.heads is not None) == (model == "gat")
        assert (recipe.mask_rate is not None) == a.labels_as_input
        walks = (recipe.roots, recipe.walk_length, recipe.steps)
        assert all((value is not None) == (sampler == "saint") for value in walks)
        assert all((value is not None) == (sampler == "cluster") for value in (recipe.parts, recipe.parts_per_batch))
        published = (model, sampler) in (("sage", "saint"), ("sage", "cluster")) or sampler == "full"
        assert published or recipe.source == "actbench"


def test_every_data_set_has_a_recipe_of_its_own() -> None:
    own = recipe_for("own.npz", "sage")
    assert all(recipe_for(entry.name, "sage") != own for entry in catalogue())


def test_overriding() -> None:
    recipe = recipe_for("arxiv", "gcn").overridden(layers=2, clip=0.0, epochs=None, batch_norm=False)
    assert (recipe.architecture.layers, recipe.clip, recipe.epochs) == (2, None, 500)
    assert not recipe.architecture.batch_norm


def test_overriding_what_only_some_have() -> None:
    deep = recipe_for("flickr", "gcnii").overridden(theta=0, residual=True)
    assert (deep.architecture.theta, deep.architecture.residual) == (None, True)
    attentive = recipe_for("flickr", "gat").overridden(labels_as_input=True)
    assert attentive.mask_rate == 0.5
    assert recipe_for("arxiv", "gat").overridden(labels_as_input=False).mask_rate is None
    assert recipe_for("arxiv", "gat").overridden(epochs=3).mask_rate == 0.5
    for model, sampler, values, remedy in [
        ("sage", "full", {"alpha": 0.1}, "--alpha means nothing without --model gcnii"),
        ("gcnii", "full", {"edge_dropout": 0.1}, "--edge-dropout means nothing without --model gat"),
        ("gat", "cluster", {"walk_length": 2}, "--walk-length means nothing without --sampler saint"),
        ("gat", "saint", {"parts_per_batch": 2}, "--parts-per-batch means nothing without --sampler cluster"),
        ("sage", "full", {"mask_rate": 0.2}, "--mask-rate means nothing without --labels-as-input"),
    ]:
        with pytest.raises(UsageError, match=remedy):
            recipe_for("cora", model, sampler).overridden(**values)  # type: ignore[arg-type]


def test_micro_f1_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 8, generator=generator)
    y = (torch.rand(50, 8, generator=generator) < 0.3).float()
    expected = f1_score(y.numpy(), (logits > 0).numpy(), average="micro")
    assert score("micro-F1", logits, y) == pytest.approx(expected, abs=1e-12)


def test_roc_auc_is_the_chance_to_rank_a_pair_right() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, y = torch.randn(60, 2, generator=generator), torch.randint(2, (60,), generator=generator)
    rank = (logits[:, 1] - logits[:, 0]).numpy()
    positive, negative = rank[y == 1], rank[y == 0]
    assert score("ROC-AUC", logits, y) == pytest.approx(np.mean(positive[:, None] > negative[None]), abs=1e-12)


def test_accuracy() -> None:
    assert score("accuracy", torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1])) == 0.5


LITERATURE = [
    # Kipf and Welling 2017, table 2: 81.5 on Cora and 79.0 on PubMed; 100 runs of each in Shchur et al. 2018, table 1.
    ("Cora", "cora", "gcn", None, 0.79),
    ("PubMed", "pubmed", "gcn", None, 0.765),
    # With 60/20/20 splits the literature lies at 87 to 91 on Computers and above 96 on Physics. On Computers scores
    # still swing by points from epoch to epoch when the recipe's 100 are over: the last bit of a sum decides.
    ("Computers", "computers", "gcn", 200, 0.87),
    ("Physics", "physics", "gcn", None, 0.955),
]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "name", "model", "epochs", "least"), LITERATURE)
def test_fp32_reaches_the_literature(
    folder: str, name: str, model: str, epochs: int | None, least: float, data_dir: Path
) -> None:
    if not (data_dir / folder / "raw").is_dir():
        pytest.skip(f"no raw files of {folder} in {data_dir}")
    torch.manual_seed(0)
    recipe = recipe_for(name, model).overridden(epochs=epochs)  # type: ignore[arg-type]
    trainer = Trainer(load(name, data_dir), recipe, CPU)
    best_valid, test = 0.0, 0.0
    for _ in range(recipe.epochs):
        trainer.step()
        scores = trainer.evaluate()
        if scores.valid > best_valid:
            best_valid, test = scores.valid, scores.test
    assert test > least
