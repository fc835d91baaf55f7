"""Which tensors of a traced graph share memory, and which of that memory is written to."""

import operator

from torch.fx import Graph, Node

from pyro_vae.torch_private import OpOverload, schema

# Batch norm updates its running statistics and does not say so in its schema.
UNDECLARED = dict.fromkeys(
    ("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"),
    ("running_mean", "running_var"),
)


class Aliases:
    """Which nodes of a graph share memory, and which of that memory is written to."""

    def __init__(self, graph: Graph) -> None:
        self._parent: dict[Node, Node] = {}
        written: list[Node] = []
        for node in graph.nodes:
            for argument, write in _aliased(node):
                self._parent[self.root(argument)] = self.root(node)
                if write:
                    written.append(node)
        self._written = {self.root(node) for node in written}

    def root(self, node: Node) -> Node:
        """Return one node that stands for all that share this one's memory."""
        while node in self._parent and self._parent[node] is not node:
            node = self._parent[node]
        return node

    def written(self, node: Node) -> bool:
        """Return whether an in-place operation writes to this node's memory."""
        return self.root(node) in self._written


def _aliased(node: Node) -> list[tuple[Node, bool]]:
    """Return the arguments whose memory a node's result may share, and whether it writes there."""
    if node.target is operator.getitem:
        return [(node.args[0], False)]  # type: ignore[list-item]
    if not isinstance(node.target, OpOverload):
        return []
    found: list[tuple[Node, bool]] = []
    hidden = UNDECLARED.get(schema(node.target).name, ())
    for index, argument in enumerate(schema(node.target).arguments):
        alias = argument.alias_info
        write = argument.name in hidden or (alias is not None and alias.is_write)
        if alias is None and not write:
            continue
        value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        values = value if isinstance(value, list | tuple) else [value]
        found += [(v, write) for v in values if isinstance(v, Node)]
    return found
