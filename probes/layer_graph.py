"""The weights of a network as a graph: neurons are nodes, and a weight between two of them is an edge of its size.

* A linear layer ``[out, in]``: an edge from each input to each output.
* A convolution ``[out, in, ...]``: channels are nodes, and an edge is the sum of a kernel's absolute weights. Between a
  convolution and a linear layer that reads its flattened output, edges are summed over the places of a channel.
* A recurrent layer: hidden units are nodes, and edges are summed over the gates. The recurrent weights are edges among
  the hidden units themselves; a unit's weight to itself leads nowhere and is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from algornn.probes.subject import Subject

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer's edges.

    Args:
        name: of its parameter.
        edges: ``[outputs, inputs]``, none negative.
        recurrent: edges among the outputs ``[outputs, outputs]`` with a diagonal of zeros; None: there are none.
        weights: number of weights behind the edges.
        places: whether the outputs are channels, which a linear layer may read at several places.
    """

    name: str
    edges: Tensor
    recurrent: Tensor | None = None
    weights: int = 0
    places: bool = False

    @property
    def outputs(self) -> int:
        """Number of neurons that the layer leads to."""
        return self.edges.shape[0]

    @property
    def inputs(self) -> int:
        """Number of neurons that the layer comes from."""
        return self.edges.shape[1]

    def shuffleable(self) -> list[Tensor]:
        """The entries that a shuffle permutes: those of each block, flat."""
        blocks = [self.edges.flatten()]
        return blocks if self.recurrent is None else [*blocks, self.recurrent[~_diagonal(self.outputs)]]

    def after(self, before: Layer) -> Layer | None:
        """This layer with the outputs of `before` as its inputs; None: their numbers do not fit."""
        if self.inputs == before.outputs:
            return self
        if before.places and self.inputs % before.outputs == 0:
            edges = self.edges.view(self.outputs, before.outputs, -1).sum(-1)
            return dataclasses.replace(self, edges=edges)
        return None


def graph_layers(subject: Subject, names: Sequence[str] | None) -> tuple[list[Layer], dict[str, int]]:
    """The layers of a path through the network, and the numbers of weights of layers that do not lie on it.

    Args:
        subject: the model, and a batch to see which layer follows which.
        names: parameters in their order; None: the longest path on which each layer's input depends on the output of
            the one before without another layer between (of several, that with most weights).

    Raises:
        ValueError: an unknown parameter, one that is no matrix, numbers of neurons that do not fit, or no layer.
    """
    if names is not None:
        chosen = [layer_of(subject.model, name) for name in names]
        for i in range(1, len(chosen)):
            fitting = chosen[i].after(chosen[i - 1])
            if fitting is None:
                raise ValueError(
                    f"layers: {names[i]!r} has {chosen[i].inputs} inputs, but {names[i - 1]!r} before it has "
                    f"{chosen[i - 1].outputs} outputs: name parameters that follow each other."
                )
            chosen[i] = fitting
        return chosen, {}
    modules, sources = _followed(subject)
    paths: dict[str, list[Layer]] = {}
    for path, module in modules.items():
        own = [layer_of(subject.model, name) for name in _parameters(path, module)]
        before = [paths[source] for source in modules if source in sources[path] and source in paths]
        ways = [[*way, fitting, *own[1:]] for way in before if (fitting := own[0].after(way[-1])) is not None]
        paths[path] = max([own, *ways], key=_length)
    if not paths:
        raise ValueError(
            f"{type(subject.model).__name__} calls no linear, convolutional or recurrent layer: pass "
            "layers=[names of parameters in their order]."
        )
    best = max(paths.values(), key=_length)
    on_it = {layer.name for layer in best}
    every = [layer_of(subject.model, name) for path, module in modules.items() for name in _parameters(path, module)]
    return best, {layer.name: layer.weights for layer in every if layer.name not in on_it}


def layer_of(model: nn.Module, name: str) -> Layer:
    """The edges of a parameter; that of a recurrent layer is named by its `weight_ih`, and brings the others along.

    Raises:
        ValueError: there is no such parameter, or it is not a matrix of weights between neurons.
    """
    path, _, attribute = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    weight = getattr(module, attribute, None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        names = [n for n, p in model.named_parameters() if p.ndim >= 2]
        close = get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(f"layers: {name!r} is no matrix of weights of the model; close names: {', '.join(close)}.")
    if isinstance(module, _RECURRENT):
        return _recurrent(module, name, attribute)
    size = weight.detach().abs().double().cpu()
    if isinstance(module, nn.Embedding):  # tokens are the inputs
        return Layer(name, size.T, weights=size.numel())
    edges = size.flatten(2).sum(-1) if size.ndim > 2 else size
    if isinstance(module, _CONVOLUTIONS):
        edges = torch.block_diag(*edges.chunk(module.groups))
    return Layer(name, edges, weights=size.numel(), places=isinstance(module, _CONVOLUTIONS))


def _recurrent(module: Any, name: str, attribute: str) -> Layer:
    if not attribute.startswith("weight_ih") or attribute.endswith("_reverse"):
        raise ValueError(
            f"layers: name a recurrent layer by its weight_ih, which brings the others along, got {name!r}."
        )
    if getattr(module, "proj_size", 0):
        raise ValueError(f"layers: {name!r} belongs to an LSTM with a projection, whose graph is not defined.")
    both = [attribute, f"{attribute}_reverse"] if getattr(module, "bidirectional", False) else [attribute]
    H, weights, inward, among = module.hidden_size, 0, [], []
    for key in both:
        W, R = (getattr(module, k).detach().abs().double().cpu() for k in (key, key.replace("weight_ih", "weight_hh")))
        weights += W.numel() + R.numel()
        inward.append(W.view(-1, H, W.shape[1]).sum(0))
        among.append(R.view(-1, H, H).sum(0).masked_fill(_diagonal(H), 0))
    return Layer(name, torch.cat(inward), torch.block_diag(*among), weights)


def adjacency(layers: Sequence[Layer]) -> csr_array:
    """The symmetric matrix of edges between all neurons: the inputs, then the outputs of each layer."""
    import numpy as np
    from scipy.sparse import coo_array

    rows, columns, values, start = [], [], [], 0
    for layer in layers:
        stop = start + layer.inputs
        for block, first in ((layer.edges, start), (layer.recurrent, stop)):
            if block is not None:
                i, j = block.nonzero(as_tuple=True)
                rows.append((i + stop).numpy())
                columns.append((j + first).numpy())
                values.append(block[i, j].numpy())
        start = stop
    N = start + layers[-1].outputs
    W = coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (N, N))
    return (W + W.T).tocsr()


def shuffled(layers: Sequence[Layer], generator: torch.Generator, non_zero: bool) -> list[Layer]:
    """The layers with the entries of each block permuted: all of them, or those that are not zero among themselves."""

    def permuted(values: Tensor) -> Tensor:
        where = (values != 0) if non_zero else torch.ones_like(values, dtype=torch.bool)
        order = torch.randperm(int(where.sum()), generator=generator, device=generator.device).cpu()
        return values.masked_scatter(where, values[where][order])

    drawn = []
    for layer in layers:
        edges, *rest = [permuted(values) for values in layer.shuffleable()]
        recurrent = None
        if rest:
            recurrent = torch.zeros(layer.outputs, layer.outputs, dtype=edges.dtype)
            recurrent.masked_scatter_(~_diagonal(layer.outputs), rest[0])
        drawn.append(dataclasses.replace(layer, edges=edges.view_as(layer.edges), recurrent=recurrent))
    return drawn


def rescaled(layers: Sequence[Layer]) -> list[Layer]:
    """Divide each hidden neuron's incoming edges by their mean, and multiply its outgoing ones: ReLU's symmetry.

    Raises:
        ValueError: a layer is recurrent, which has no such symmetry.
    """
    if any(layer.recurrent is not None for layer in layers):
        raise ValueError("rescale needs the symmetry of ReLU, which a recurrent layer does not have: leave it out.")
    done = list(layers)
    for i in range(len(done) - 1):
        mean = done[i].edges.mean(1)
        mean = mean.where(mean > 0, 1)
        done[i] = dataclasses.replace(done[i], edges=done[i].edges / mean[:, None])
        done[i + 1] = dataclasses.replace(done[i + 1], edges=done[i + 1].edges * mean)
    return done


def _diagonal(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.bool)


def _length(path: Sequence[Layer]) -> tuple[int, int]:
    return len(path), sum(layer.weights for layer in path)


def _parameters(path: str, module: Any) -> Iterator[str]:
    """The names by which `layer_of` knows a module's layers."""
    prefix = f"{path}." if path else ""
    if isinstance(module, nn.RNNBase):
        yield from (f"{prefix}weight_ih_l{i}" for i in range(module.num_layers))
    else:
        yield f"{prefix}weight_ih" if isinstance(module, nn.RNNCellBase) else f"{prefix}weight"


def _followed(subject: Subject) -> tuple[dict[str, nn.Module], dict[str, set[str]]]:
    """The layers that one forward calls, in the order of their first calls, and those that each directly follows.

    Each layer's output is cut off from what made it, so that the graph of autograd behind another one's input ends at
    the outputs of the layers that it follows.
    """
    kinds = (nn.Linear, *_CONVOLUTIONS, *_RECURRENT)
    modules: dict[str, nn.Module] = {}
    sources: dict[str, set[str]] = {}
    outputs: dict[int, tuple[str, Tensor]] = {}  # by identity, and kept alive for it

    def before(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        modules.setdefault(path, module)
        given = tree_leaves(args[:1] or list(kwargs.values())[:1])
        found = {outputs[id(leaf)][0] for leaf in _origins(given) if id(leaf) in outputs}
        sources.setdefault(path, set()).update(found - {path})

    def cut(path: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        leaf = value.detach().requires_grad_()
        outputs[id(leaf)] = (path, leaf)
        return leaf.clone()  # a leaf itself could not be changed in place

    with _hooks(subject.model, kinds, before, cut), torch.enable_grad():
        subject.loss(subject.model, subject.loader[0])
    return modules, sources


@contextmanager
def _hooks(model: nn.Module, kinds: tuple[type[nn.Module], ...], before: Any, cut: Any) -> Iterator[None]:
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, kinds) and not getattr(module, "proj_size", 0):
            handles += [
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, path=path: before(path, m, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(
                    lambda m, args, output, path=path: apply_to_collection(output, Tensor, lambda t: cut(path, t))
                ),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _origins(values: Iterable[Any]) -> list[Tensor]:
    """The leaves at which the graphs of autograd behind some tensors end."""
    stack = [value.grad_fn for value in values if isinstance(value, Tensor)]
    seen, leaves = set(), []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack += [following for following, _ in node.next_functions]
    return leaves
