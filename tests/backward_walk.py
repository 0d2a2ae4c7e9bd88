"""A backward in Python, node by node: for tensors of a device that is not here.

Autograd's engine asks for a driver as soon as it meets a CUDA tensor, fake or not; its nodes do not.
"""

from collections import defaultdict

import torch
from torch.autograd.function import BackwardCFunction


def gradients_by_walk(output, leaves):
    """What `torch.autograd.grad(output, leaves)` gives for a scalar; hooks are left out."""
    incoming = defaultdict(dict)
    incoming[output.grad_fn][0] = torch.ones_like(output)
    found = {}
    for node in _from_the_output_on(output.grad_fn):
        given = incoming.pop(node)
        if hasattr(node, "variable"):  # AccumulateGrad: a leaf
            found[id(node.variable)] = given[0]
            continue
        for (earlier, index), gradient in _edges(node, given):
            like = earlier.variable if hasattr(earlier, "variable") else earlier._input_metadata[index]
            # as the engine does with a gradient that was broadcast, or computed in another dtype
            gradient = gradient.sum_to_size(tuple(like.shape)).to(like.dtype)
            place = incoming[earlier]
            place[index] = place[index] + gradient if index in place else gradient
    return [found[id(leaf)] for leaf in leaves]


def _from_the_output_on(root):
    """All nodes, each behind those that hand it gradients."""
    order, seen = [], set()

    def visit(node):
        seen.add(node)
        for earlier, _ in node.next_functions:
            if earlier is not None and earlier not in seen:
                visit(earlier)
        order.append(node)

    visit(root)
    return reversed(order)


def _edges(node, given):
    """(where to, gradient) of a node whose outputs got the gradients `given`."""
    outputs = node._input_metadata
    if isinstance(node, BackwardCFunction):  # an operator's: gives None for what has no gradient, tensor or not
        gradients = node.apply(*(given.get(i) for i in range(len(outputs))))
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        wanted = [edge for edge in node.next_functions if edge[0] is not None]
        return zip(wanted, [gradient for gradient in gradients if gradient is not None], strict=True)
    gradients = node(
        *(given.get(i, torch.zeros(o.shape, dtype=o.dtype, device=o.device)) for i, o in enumerate(outputs))
    )
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    pairs = zip(node.next_functions, gradients, strict=True)
    return [(edge, gradient) for edge, gradient in pairs if edge[0] is not None and gradient is not None]
