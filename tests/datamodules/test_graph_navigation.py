"""Graph navigation: the graphs' laws, disjoint sets, and episodes that differ."""

import numpy as np
import pytest
import torch

from algornn.datamodules import GraphNavigation
from algornn.datamodules.graph_navigation import NO_EDGE, connected, draw_graph


def reachable(edges, start):
    found, todo = {start}, [start]
    while todo:
        for target in edges[todo.pop()]:
            if target != NO_EDGE and int(target) not in found:
                found.add(int(target))
                todo.append(int(target))
    return found


@pytest.mark.parametrize(("nodes", "actions"), [(5, 3), (2, 1), (9, 2), (33, 4)])
def test_every_node_reaches_every_other_one_and_none_itself(nodes, actions):
    draw = np.random.default_rng(0)
    for _ in range(20):
        edges = draw_graph(draw, nodes, actions)
        assert all(reachable(edges, node) == set(range(nodes)) for node in range(nodes))
        assert nodes <= (edges != NO_EDGE).sum() <= 2 * nodes
        assert not any(node in edges[node] for node in range(nodes))


def test_connected_tells_a_graph_with_a_dead_end():
    ring = np.array([[1], [2], [0]])
    assert connected(ring)
    assert not connected(np.array([[1], [2], [1]]))  # nothing leads to 0
    assert not connected(np.array([[1], [2], [NO_EDGE]]))


def test_sets_are_disjoint_and_known_graphs_have_other_episodes():
    data = GraphNavigation(size=50, episodes=4, test_episodes=2)
    assert data.stages == ("train", "val", "val_unseen", "test", "seen")
    assert data.ood == ("val_unseen", "test")
    sets = {stage: {data.dataset(stage)[i].edges.tobytes() for i in range(100)} for stage in data.stages}
    assert all(len(graphs) == 50 for graphs in sets.values())
    assert sets["train"] == sets["val"] == sets["seen"]
    assert not sets["train"] & sets["test"]
    assert not (sets["train"] | sets["test"]) & sets["val_unseen"]
    seeds = [data.dataset(stage)[i].seed for stage in data.stages for i in range(100)]
    assert len(set(seeds)) == 500
    assert [len(data.dataset(stage)) for stage in data.stages] == [200, 100, 100, 100, 100]
    example = data.examples("test")[0]
    assert all(word.split(" -")[0] in "01234" for word in example.source)
    assert example.group == "graph"


def test_batches_are_those_of_the_seed():
    data = GraphNavigation(size=12, batch_size=6, episodes=2)
    batch = next(iter(data.train_dataloader()))
    assert (batch.edges.shape, batch.edges.dtype, batch.seed.dtype) == ((6, 5, 3), torch.int64, torch.int64)
    assert (data.input_size, data.output_size) == (17, 3)
    again = next(iter(GraphNavigation(size=12, batch_size=6, episodes=2).train_dataloader()))
    other = next(iter(GraphNavigation(size=12, batch_size=6, episodes=2, seed=1).train_dataloader()))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not torch.equal(batch.edges, other.edges)
    for i, row in zip(batch.id.tolist(), batch.edges, strict=True):
        assert row.tolist() == data.dataset("train")[i].edges.tolist()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "graph"}, ValueError, "did you mean 'graphs'"),
        ({"nodes": 1}, ValueError, "expected at least 2, not 1"),
        ({"actions": 0}, ValueError, "actions must be at least 1"),
        ({"size": 2.0}, TypeError, "size must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        GraphNavigation(**wrong)


def test_too_few_graphs_are_named():
    with pytest.raises(ValueError, match="Found only 1 different graphs of 2 nodes and 1 actions, expected three sets"):
        GraphNavigation(nodes=2, actions=1, size=1).dataset("train")
    with pytest.raises(ValueError, match="of 12 nodes and 1 actions leads from every node to every other"):
        GraphNavigation(nodes=12, actions=1, size=1).dataset("train")
