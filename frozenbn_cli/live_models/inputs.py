"""The inputs that a model is run on: random ones of a shape, or those of a file. Imports torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenbn_cli import torch_jit
from frozenbn_cli.errors import (
    DamagedFileError,
    InputError,
    UnsupportedFileError,
    UsageError,
    located,
)
from frozenbn_cli.live_models.guarding import first_line
from frozenbn_cli.live_models.programs import Takes, takes_of
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.live_models.stored_values import read_stored
from frozenbn_cli.wording import counted

__all__ = [
    "USUAL_SIZES",
    "Inputs",
    "Signature",
    "candidate_inputs",
    "dtype_of",
    "first_convolution",
    "read_values",
    "shape_text",
    "signature_of",
    "tensors_in",
]

_ADVICE = "Save tensors alone, with numpy.savez, safetensors or torch.save."
_SIZES = (64, 224, 32, 256, 299, 128, 384, 512, 28)
# Of clips (frames, height and width) and of points, by the dimensions of a convolution's weight.
_OTHER_SIZES: Mapping[int, Sequence[tuple[int, ...]]] = {
    5: ((8, 64, 64), (16, 112, 112), (16, 224, 224), (32, 32, 32), (64, 64, 64), (8, 28, 28)),
    3: ((64,), (256,), (1024,), (16000,)),
}

USUAL_SIZES = (224, *_SIZES)
"""Of images, in the order in which they are tried where it is better not to take a small one."""

_TENSORS = re.compile(r"\b(?:[Ll]ist|Sequence|Iterable)\[.*Tensor")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model is called with.

    Attributes:
        arguments: By position.
        keywords: By name.
        shown: Both, in words.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ""

    def of_dtype(
        self, dtype: torch.dtype | None, device: torch.device | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return copies of both, their floating-point tensors in ``dtype``; None for as it is."""
        keywords: dict[str, Any] = _copied(dict(self.keywords), dtype, device)
        return _copied(self.arguments, dtype, device), keywords

    def taken_by(self, program: Takes) -> Inputs:
        """Return the same by position and by name as a program takes it."""
        arguments, keywords = program.in_place(self.arguments, self.keywords)
        return replace(self, arguments=arguments, keywords=keywords)

    def doubled(self) -> Inputs:
        """Return inputs of twice the batch, since BatchNorm cannot train on a single value."""
        keywords: dict[str, Any] = _doubled(dict(self.keywords))
        return Inputs(_doubled(self.arguments), keywords, self.shown)


def _copied(value: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None, copy=True)
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(part, dtype, device) for part in value)
    if isinstance(value, dict):
        return {name: _copied(part, dtype, device) for name, part in value.items()}
    return value


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, value]) if value.dim() > 1 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_doubled(part) for part in value)
    if isinstance(value, dict):
        return {name: _doubled(part) for name, part in value.items()}
    return value


def dtype_of(model: Any) -> torch.dtype:
    """Return the dtype that a model takes its inputs in: that of its first weights."""
    if takes := takes_of(model):
        return takes.dtype
    weight = first_convolution(model)
    if weight is not None:
        return weight.dtype
    for value in model.state_dict().values():
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    return torch.float32


def candidate_inputs(
    model: Any, options: RunOptions, *, sizes: Sequence[int] = ()
) -> Iterator[tuple[Inputs, ...]] | str:
    """Return what may be tried on a model, in turn, or why there is nothing.

    Each candidate holds the inputs of every run.

    Args:
        model: The model.
        options: What is given of them.
        sizes: Of images, where nothing is given; small ones first if there are none.

    Raises:
        InputError: The file of inputs cannot be read.
    """
    signature = signature_of(model)
    if isinstance(signature, str):
        return signature
    dtype = dtype_of(model)
    program = takes_of(model)
    if options.inputs is not None:
        read = _read(options.inputs, signature, dtype)
        return ((inputs.taken_by(program) if program else inputs,) for inputs in read)
    if program:
        return _of_program(program, options)
    if signature.only_by_name:
        return f"its forward takes {signature.only_by_name} by name; give --inputs"
    shapes = options.input_shapes
    kinds = signature.kinds(len(shapes))
    for kind in kinds:
        if kind not in ("Tensor", "List[Tensor]"):
            return f"its forward takes a {kind}; give --inputs"
    takes = counted(len(kinds), "input")
    if shapes and len(shapes) != len(kinds):
        return f"its forward takes {takes}, and {counted(len(shapes), 'shape')} given"
    weight = first_convolution(model)
    if not shapes and (weight is None or len(kinds) != 1):
        return f"its forward takes {takes} of unknown shape; give --input-shape"
    tried = [shapes] if shapes else _shapes(weight, sizes or _SIZES)
    return (_random(candidate, kinds, options, dtype) for candidate in tried)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a forward takes.

    Attributes:
        parameters: The type of each argument by position in words, by name, in order.
        required: How many of them have to be given.
        further: The type of those after them, as many as there are; None if there can be none.
        by_name: Whether an argument has to be given, for those that are given by name alone.
        any_name: Whether there can be others by name.
    """

    parameters: Mapping[str, str]
    required: int
    further: str | None = None
    by_name: Mapping[str, bool] = field(default_factory=dict)
    any_name: bool = False

    def kinds(self, given: int) -> list[str]:
        """Return the types of as many arguments as are given, or have to be."""
        known = list(self.parameters.values())
        count = max(self.required, given, 1)
        more = self.further or ("Tensor" if not known else None)
        return (known + [more] * (count - len(known)) if more else known)[:count]

    def knows(self, names: Iterable[object]) -> bool:
        """Return whether all of these are names of arguments."""
        return all(name in self.parameters or name in self.by_name for name in names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its arguments."""
        return (*self.parameters, *self.by_name)

    @property
    def only_by_name(self) -> str:
        """What has to be given by name, in words; empty if nothing has."""
        if self.any_name and not (self.parameters or self.further):
            return "its arguments"
        return ", ".join(name for name, is_required in self.by_name.items() if is_required)


def signature_of(model: Any) -> Signature | str:
    """Return what the forward of a model takes, or why that cannot be told."""
    if torch_jit.is_script_module(model):
        try:
            arguments = model._c._get_method("forward").schema.arguments[1:]
        except RuntimeError:
            return "it has no method forward"
        required = [item for item in arguments if not item.has_default_value()]
        return Signature({item.name: str(item.type) for item in arguments}, len(required))
    if type(model).forward is nn.Module.forward:
        return "it has no method forward"
    kinds: dict[Any, dict[str, inspect.Parameter]] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        kinds.setdefault(parameter.kind, {})[name] = parameter
    positional = {
        **kinds.get(inspect.Parameter.POSITIONAL_ONLY, {}),
        **kinds.get(inspect.Parameter.POSITIONAL_OR_KEYWORD, {}),
    }
    further = list(kinds.get(inspect.Parameter.VAR_POSITIONAL, {}).values())
    by_name = kinds.get(inspect.Parameter.KEYWORD_ONLY, {})
    return Signature(
        {name: _kind(parameter) for name, parameter in positional.items()},
        sum(item.default is item.empty for item in positional.values()),
        further=_kind(further[0]) if further else None,
        by_name={name: item.default is item.empty for name, item in by_name.items()},
        any_name=inspect.Parameter.VAR_KEYWORD in kinds,
    )


def _kind(parameter: inspect.Parameter) -> str:
    annotation = inspect.formatannotation(parameter.annotation)
    return "List[Tensor]" if _TENSORS.search(annotation) else "Tensor"


def first_convolution(model: Any) -> Tensor | None:
    """Return the weight of the first convolution: of images, else of clips, else of points."""
    weights = [
        value
        for name, value in model.state_dict().items()
        if name.endswith("weight") and isinstance(value, Tensor) and value.is_floating_point()
    ]
    of_each = (value for dims in (4, 5, 3) for value in weights if value.dim() == dims)
    return next(of_each, None)


def _shapes(weight: Tensor | None, sizes: Sequence[int]) -> Iterator[tuple[tuple[int, ...], ...]]:
    if weight is not None and weight.dim() != 4:
        yield from (((1, weight.shape[1], *size),) for size in _OTHER_SIZES[weight.dim()])
        return
    channels = dict.fromkeys((weight.shape[1] if weight is not None else 3, 3, 1))
    for count in channels:
        for size in sizes:
            yield ((1, count, size, size),)


def _random(
    shapes: Sequence[tuple[int, ...]], kinds: list[str], options: RunOptions, dtype: torch.dtype
) -> tuple[Inputs, ...]:
    shown = _shapes_text(shapes, dtype)
    inputs = []
    for seed in range(options.seed, options.seed + options.runs):
        generator = torch.Generator().manual_seed(seed)
        arguments: list[Any] = []
        for shape, kind in zip(shapes, kinds, strict=True):
            value = _uniform(shape, generator)
            arguments.append(list(value) if kind == "List[Tensor]" else value)
        inputs.append(Inputs(tuple(arguments), shown=shown))
    return tuple(inputs)


def _of_program(takes: Takes, options: RunOptions) -> Iterator[tuple[Inputs, ...]] | str:
    """Return the only inputs that a program is known to take, or of the shapes that are given."""
    count = len(takes.tensors)
    shapes = options.input_shapes or tuple(tuple(tensor.shape) for tensor in takes.tensors)
    if len(shapes) != count:
        given = counted(len(shapes), "shape")
        return f"the program takes {counted(count, 'tensor')}, and {given} given"
    shown = _shapes_text(shapes, takes.dtype)
    inputs = []
    for seed in range(options.seed, options.seed + options.runs):
        generator = torch.Generator().manual_seed(seed)
        values = [_uniform(shape, generator) for shape in shapes]
        inputs.append(Inputs(*takes.filled(values), shown=shown))
    return iter([tuple(inputs)])


def _shapes_text(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> str:
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
    return f"{shown} of {str(dtype).removeprefix('torch.')}"


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    try:
        return torch.rand(shape, generator=generator, dtype=torch.float32)
    except RuntimeError as error:
        shown = "x".join(map(str, shape))
        raise UsageError(f"an input of {shown} cannot be made ({first_line(error)})") from error


# Files of inputs


def _read(path: Path, signature: Signature, dtype: torch.dtype) -> list[Inputs]:
    """Return the inputs in a file, in each way in which they can be meant.

    A tuple in a .pt is what forward takes by position, a dict what it takes by name, anything else
    is its one argument. Named tensors go to the arguments of the same names; where these are no
    names of arguments, in the order of their names, or else as one dict.
    """
    with located(f"inputs {path}"):
        value = read_values(path)
    arguments = value if isinstance(value, tuple) else (value,)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [(arguments, {})]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        in_order = tuple(value[name] for name in sorted(value, key=_natural))
        calls.insert(0, (in_order, {}))
        if signature.knows(value):
            calls = [((), value)]
        elif signature.any_name:
            calls.insert(0, ((), value))
    return [_inputs(path, arguments, keywords, dtype) for arguments, keywords in calls]


def _inputs(
    path: Path, arguments: tuple[Any, ...], keywords: dict[str, Any], dtype: torch.dtype
) -> Inputs:
    shown = ", ".join(shape_text(part) for part in (*arguments, *keywords.values()))
    shown = f"{path.name} ({shown}, run in {str(dtype).removeprefix('torch.')})"
    return Inputs(arguments, keywords, shown)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def shape_text(value: Any) -> str:
    """Return the shapes of what a model is given, in words."""
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "a number"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shape_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {shape_text(part)}' for name, part in value.items())}}}"
    return type(value).__name__


def read_values(path: Path) -> Any:
    """Return the tensors that a file holds, as it holds them: one, or several by place or name.

    Raises:
        InputError: It cannot be read, or holds none.
    """
    try:
        value = read_stored(path)
    except (DamagedFileError, UnsupportedFileError) as error:
        raise InputError(f"cannot be read ({error.problem})", advice=_ADVICE) from error
    if not any(True for _ in tensors_in(value)):
        raise InputError(expected="tensors", found=type(value).__name__)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
