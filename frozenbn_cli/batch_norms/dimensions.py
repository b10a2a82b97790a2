"""How many spatial dimensions a BatchNorm layer has, as far as the weights around it prove that.

A state dict does not say it. What proves it are weights with the layer's channels: the one that
feeds the layer, or a convolution that takes what the layer gives. Names and shapes are all that is
looked at, and the order of the file where that is the order of the model: `state_dict()` keeps it,
`safetensors.torch.save_file` sorts it away. What is not proved is unknown.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Surroundings"]

# What a convolution or linear layer calls its weight, also pruned, normalised or sparse.
_ROLE = re.compile(
    r"(?:^|\.)(?:weight|weight_orig|weight_v|weight_ih_l0|kernel"
    r"|parametrizations\.weight\.original[01]?)$"
)
# Linear layers of these names make scales and shifts for a normalisation, and feed none.
_MODULATION = re.compile(
    r"gamma|beta|gain|bias|scale|shift|embed|style|film|cond|modul", re.IGNORECASE
)
_WIDEST_KERNEL = 7  # Of sparse convolutions, which keep their channels last.
_LOCAL = 2  # Modules: a weight that lies deeper is of another block.


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight of two axes or more.

    Attributes:
        name: Of the entry.
        module: That it is of.
        place: In the file.
        dims: Spatial dimensions of what it gives; 1 where it has no kernel.
        outputs: The channels that it gives.
        inputs: The channels that it takes.
        is_linear: Whether it has no kernel.
    """

    name: str
    module: str
    place: int
    dims: int
    outputs: int
    inputs: int
    is_linear: bool

    def depth_in(self, scope: str) -> int:
        """Return how many modules deep it lies in a module."""
        return len(_parts(self.module)) - len(_parts(scope))

    def takes(self, channels: int) -> bool:
        """Return whether it may take what has so many channels, flattened where it is linear."""
        if self.is_linear:
            return self.inputs % channels == 0
        # The kernels of a depthwise convolution have one input each.
        return self.inputs == channels or (self.inputs == 1 and self.outputs == channels)


@dataclass(frozen=True, slots=True)
class _Layer:
    name: str
    place: int
    channels: int


class Surroundings:
    """The weights around the BatchNorm layers of a state dict.

    Args:
        shapes: Of every entry, by name, in the file's order.
        channels: Of each BatchNorm layer, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, int]) -> None:
        places = {name: place for place, name in enumerate(shapes)}
        self._layers = {
            name: _Layer(name, _place(name, places), count) for name, count in channels.items()
        }
        self._weights = list(_weights(shapes, places, channels))
        self._has_kernels = any(not weight.is_linear for weight in self._weights)
        self._is_ordered = _is_ordered(shapes)
        self._alike: dict[int, list[_Layer]] = {}
        for layer in self._layers.values():
            self._alike.setdefault(layer.channels, []).append(layer)
        # Weights by the module around them and the channels that they give or take.
        self._found: dict[tuple[str, int], list[_Weight]] = {}
        for weight in self._weights:
            for scope in _scopes(weight.module):
                for count in {weight.outputs, weight.inputs}:
                    self._found.setdefault((scope, count), []).append(weight)

    def dims_of(self, name: str) -> tuple[int | None, str | None]:
        """Return the spatial dimensions of a layer and the entry that proves them, None if none."""
        layer = self._layers[name]
        proof = self._proof(layer) if layer.channels else None
        return (proof.dims, proof.name) if proof else (None, None)

    def _proof(self, layer: _Layer) -> _Weight | None:
        follower = self._follower(layer)
        for scope in _scopes(layer.name):
            around = [
                weight
                for weight in self._found.get((scope, layer.channels), ())
                if not _modulates(weight, layer)
            ]
            if not self._has_kernels and around:
                return around[0]  # Where nothing has a kernel, there is no map to normalise.
            evidence = [
                weight
                for weight in around
                if not weight.is_linear or weight.outputs == layer.channels
            ]
            if evidence:
                proof = self._in_order(layer, evidence, scope, follower)
                break
        else:
            proof = None
        is_fed = follower and not follower.is_linear and follower.takes(layer.channels)
        return proof or (follower if is_fed else None)

    def _in_order(
        self, layer: _Layer, evidence: Sequence[_Weight], scope: str, follower: _Weight | None
    ) -> _Weight | None:
        """Return the weight in a module that has to feed a layer in it, or to be fed by it."""
        here = self._position(layer, scope)
        positions = [self._position(weight, scope) for weight in evidence]
        if here is None or None in positions:
            return self._beside(layer, evidence, scope)
        placed = [(place, w) for place, w in zip(positions, evidence, strict=True) if place]
        if feeder := self._unclaimed(layer, here, placed, scope):
            depth = feeder.depth_in(scope)
            behind_pooling = follower and follower.is_linear and follower.takes(layer.channels)
            if depth == 1 or (depth <= _LOCAL and not behind_pooling):
                return feeder
        # A transposed convolution has its inputs first: of a layer that is alone in having as many
        # channels here, it may be on either side.
        is_alone = self._count_in(layer, scope) == 1
        return next(
            (
                weight
                for place, weight in placed
                if not weight.is_linear
                and (
                    (weight.depth_in(scope) == 1 and is_alone)
                    or (
                        weight.depth_in(scope) <= _LOCAL
                        and place > here
                        and weight.takes(layer.channels)
                    )
                )
            ),
            None,
        )

    def _beside(self, layer: _Layer, evidence: Sequence[_Weight], scope: str) -> _Weight | None:
        """Return what feeds a layer where the order is not known, if there is but one answer."""
        depth = min(weight.depth_in(scope) for weight in evidence)
        near = [weight for weight in evidence if weight.depth_in(scope) == depth]
        if depth > _LOCAL or len({weight.dims for weight in near}) > 1:
            return None
        if near[0].is_linear:
            # One whose inputs are a multiple of the channels may stand behind the layer.
            return None if any(weight.takes(layer.channels) for weight in near) else near[0]
        is_claimed = self._count_in(layer, scope, depth) > len(near)
        if depth == 1 and not is_claimed:
            return near[0]
        ends = any(
            weight.is_linear and weight.takes(layer.channels) and _is_in(weight.module, scope)
            for weight in self._weights
        )
        return None if ends or (depth > 1 and is_claimed) else near[0]

    def _count_in(self, layer: _Layer, scope: str, depth: int = _LOCAL) -> int:
        """Return how many layers in a module, at most so deep, have as many channels."""
        return sum(
            _is_in(other.name, scope) and (depth > 1 or _parent(other.name) == scope)
            for other in self._alike[layer.channels]
        )

    def _position(self, item: _Weight | _Layer, scope: str) -> int | None:
        """Return where something comes in a module, from 1; None where nothing tells."""
        if self._is_ordered:
            return item.place + 1
        path = item.name if isinstance(item, _Layer) else item.module
        child = _parts(path)[len(_parts(scope))]
        return int(child) + 1 if child.isdecimal() else None

    def _unclaimed(
        self, layer: _Layer, here: int, placed: Iterable[tuple[int, _Weight]], scope: str
    ) -> _Weight | None:
        """Return the weight before a layer that feeds it, and no layer before that one."""
        count = layer.channels
        steps: list[tuple[int, _Weight | None]] = [
            (place, weight) for place, weight in placed if place < here and weight.outputs == count
        ]
        steps += [
            (self._position(other, scope) or 0, None)
            for other in self._alike[count]
            if other is not layer and _is_in(other.name, scope)
        ]
        waiting: list[_Weight] = []
        for place, weight in sorted(steps, key=lambda step: (step[0], step[1] is None)):
            if weight:
                waiting.append(weight)
            elif waiting and place < here:
                waiting.remove(_nearest(waiting, scope))
        return _nearest(waiting, scope) if waiting else None

    def _follower(self, layer: _Layer) -> _Weight | None:
        """Return the weight that comes next in the file, if that is the model's order."""
        if not self._is_ordered:
            return None
        after = bisect_right(self._weights, layer.place, key=lambda weight: weight.place)
        return self._weights[after] if after < len(self._weights) else None


def _weights(
    shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, int], layers: Mapping[str, int]
) -> list[_Weight]:
    """Return the weights of convolutions and linear layers, in the file's order."""
    largest: dict[str, str] = {}
    for name, shape in shapes.items():
        role = _ROLE.search(name)
        module = name[: role.start()] if role else ""
        # A weight that is stored as magnitude and direction has its shape in one of them.
        if (
            role
            and len(shape) > 1
            and module not in layers
            and math.prod(shape) > math.prod(shapes.get(largest.get(module, ""), (0,)))
        ):
            largest[module] = name
    found = (
        _Weight(name, module, places[name], *_meaning(name, shapes[name]))
        for module, name in largest.items()
    )
    return sorted(found, key=lambda weight: weight.place)


def _meaning(name: str, shape: tuple[int, ...]) -> tuple[int, int, int, bool]:
    """Return the dimensions, outputs and inputs of a weight, and whether it is linear."""
    first, second, *kernel = shape
    *outer, last_but_one, last = shape
    if name.endswith("kernel"):  # MinkowskiEngine and TensorFlow keep the channels last.
        if not kernel:
            return 1, second, first, True
        if max(outer) <= _WIDEST_KERNEL < last or len(shape) == 3:
            return max(len(shape) - 2, 1), last, last_but_one, False
    if not kernel:
        return 1, first, second, True
    # Sparse convolutions (spconv) work on a list of points, which BatchNorm1d normalises.
    if len(shape) > 3 and last > _WIDEST_KERNEL:
        if _is_cube(shape[1:-1]):
            return 1, first, last, False
        if _is_cube(outer):
            return 1, last, last_but_one, False
    return len(kernel), first, second, False


def _nearest(weights: Sequence[_Weight], scope: str) -> _Weight:
    """Return the last of the weights that lie least deep: a gate lies deeper than what it gates."""
    return min(reversed(weights), key=lambda weight: weight.depth_in(scope))


def _is_cube(sizes: Sequence[int]) -> bool:
    """Return whether these may be the sizes of a sparse kernel, and are no channels."""
    return len(set(sizes)) == 1 and (3 - len(sizes)) < sizes[0] <= _WIDEST_KERNEL


def _modulates(weight: _Weight, layer: _Layer) -> bool:
    """Return whether a weight is part of a conditional normalisation."""
    inner = weight.module.removeprefix(_parent(layer.name))
    return _is_in(weight.module, layer.name) or (
        weight.is_linear and _MODULATION.search(inner) is not None
    )


def _is_ordered(names: Iterable[str]) -> bool:
    """Return whether the entries seem to be in the order of the model: not sorted, not shuffled."""
    names = [name for name in names if not name.endswith("num_batches_tracked")]
    modules = [name.rpartition(".")[0] for name in names]
    blocks = sum(one != other for one, other in pairwise(modules)) + 1
    return blocks == len(set(modules)) and names != sorted(names)


def _place(layer: str, places: Mapping[str, int]) -> int:
    """Return where the first entry of a layer stands."""
    roles = ("running_mean", "running_var", "weight", "bias")
    names = (f"{layer}.{role}" if layer else role for role in roles)
    return min((places[name] for name in names if name in places), default=0)


def _is_in(module: str, scope: str) -> bool:
    return not scope or module == scope or module.startswith(f"{scope}.")


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _scopes(module: str) -> list[str]:
    """Return the modules around a module, innermost first; the model is ``""``."""
    parts = _parts(module)[:-1]
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _parts(path: str) -> list[str]:
    return path.split(".") if path else []
