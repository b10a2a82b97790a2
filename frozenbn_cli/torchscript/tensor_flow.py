"""Where the tensors and training flags of an archive's layers get to, whatever they are called.

Every method of every module that holds a buffer is followed over the objects that there are, with
what it calls. What is not known to only read a tensor counts as writing it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.torchscript import steps
from frozenbn_cli.torchscript.held_tensors import (
    AFFINE_AND_STATISTICS,
    COUNT,
    FALSE,
    NOTHING,
    HeldTensors,
    Token,
    Tokens,
)
from frozenbn_cli.torchscript.script_archive import (
    STATISTICS,
    ScriptArchive,
    ScriptModule,
    module_at,
    storage_keys,
)
from frozenbn_cli.torchscript.source_code import ClassSource, dotted, type_name_of

__all__ = ["TensorFlow", "follow_tensors"]

_MAX_CONTEXTS = 400_000
_MAX_ROUNDS = 12


@dataclass(slots=True)
class TensorFlow:
    """What becomes of tensors and flags.

    Attributes:
        written: How a storage may change beside by a layer's own normalising, by key.
        used_flags: What else a layer's training flag serves, by the identity of the layer.
        normalised: Where a storage serves live normalisation that is not its layer's, by key.
    """

    written: dict[str, str] = field(default_factory=dict)
    used_flags: dict[int, str] = field(default_factory=dict)
    normalised: dict[str, str] = field(default_factory=dict)

    def live(self, module: ScriptModule) -> str | None:
        """Return how a module's tensors serve live normalisation; None if they do not."""
        names = [
            name
            for name, value in module.attributes.items()
            if any(key in self.normalised for key in storage_keys(value))
        ]
        if not names:
            return None
        place = self.normalised[next(storage_keys(module.attributes[names[0]]))]
        return f"{place} goes on updating its {' and '.join(names)}, by another flag than a layer's"

    def obstacles(self, script: ScriptArchive) -> dict[int, str]:
        """Return why layers cannot be frozen, by identity."""
        found = dict(self.used_flags)
        learnt = {key: name for name, value in script.parameters() for key in storage_keys(value)}
        for module in script.modules:
            for role in (*AFFINE_AND_STATISTICS, COUNT):
                for key in storage_keys(module.attributes.get(role)):
                    how = self.written.get(key)
                    if role in STATISTICS and key in learnt:
                        how = how or f"is a parameter ({learnt[key]}), which training changes"
                    if module.has_statistics and how:
                        found.setdefault(id(module.value), f"its {role} {how}")
        return found


def follow_tensors(script: ScriptArchive) -> TensorFlow:
    """Follow the tensors of all layers, and all buffers, through the code of an archive.

    Raises:
        UnsupportedFileError: The code is beyond what can be followed.
    """
    try:
        return _Follower(script).run()
    except RecursionError as error:
        raise UnsupportedFileError("code nested deeper than any model's") from error


@dataclass(frozen=True, slots=True, eq=False)
class _Code:
    """A function or a method, by its name and its class, and what it does."""

    source: ClassSource | None
    name: str
    function: steps.Function

    @property
    def place(self) -> str:
        if self.source is None:
            return type_name_of(self.name)
        return f"{type_name_of(self.source.name).rpartition('.')[2]}.{self.name}"


@dataclass(slots=True, eq=False)
class _Context:
    """A function with certain arguments: what it returns, and who asked for that."""

    code: _Code
    arguments: tuple[Tokens, ...]
    result: Tokens = NOTHING
    callers: set[_Context] = field(default_factory=set)


class _Follower:
    """Follows one function after the other until nothing more comes out of them."""

    def __init__(self, script: ScriptArchive) -> None:
        self._script = script
        self.held = HeldTensors(script)
        self.flow = TensorFlow()
        self._codes: dict[tuple[str, str], _Code | None] = {}
        self._contexts: dict[tuple[int, tuple[Tokens, ...]], _Context] = {}
        self._waiting: dict[_Context, None] = {}
        of_type: dict[str, set[Token]] = {}
        for key, module in self.held.modules.items():
            of_type.setdefault(module.source.name, set()).add(("module", key))
        self._by_type = {name: frozenset(tokens) for name, tokens in of_type.items()}

    def run(self) -> TensorFlow:
        for key in self.held.modules:
            if key in self.held.holding:
                self._begin(key)
        for name, storage in self.held.restored():
            how = f"is also held by {name}, whose attributes its own code makes (__setstate__)"
            self.flow.written.setdefault(storage, how)
        while self._waiting:
            context, _ = self._waiting.popitem()
            result = _Evaluation(self, context).run()
            if result != context.result:
                context.result = result
                self._waiting |= dict.fromkeys(context.callers)
        return self.flow

    def _begin(self, key: int) -> None:
        """Follow every method of a module, since anybody may call them."""
        for method in self.held.modules[key].source.methods:
            code = self.method(key, method.name)
            if code is not None:
                others = [self._any_of(argument.annotation) for argument in method.args.args[1:]]
                self.ask(code, (frozenset({("module", key)}), *others), None)

    def _any_of(self, annotation: ast.expr | None) -> Tokens:
        """Return what an argument of a type may be: a trace hands modules to modules."""
        name = ".".join(dotted(annotation) or ()) if annotation else ""
        return self._by_type.get(name, NOTHING)

    def method(self, module: int, name: str) -> _Code | None:
        """Return a method of a module."""
        source = self.held.modules[module].source
        key = source.name, name
        if key not in self._codes:
            node = next((method for method in source.methods if method.name == name), None)
            function = steps.compile_function(node) if node else None
            self._codes[key] = _Code(source, name, function) if function else None
        return self._codes[key]

    def function(self, name: str) -> _Code | None:
        """Return a function of the archive."""
        key = "", name
        if key not in self._codes:
            node = self._script.function(name)
            self._codes[key] = _Code(None, name, steps.compile_function(node)) if node else None
        return self._codes[key]

    def is_tuple(self, name: str) -> bool:
        """Return whether a call of this name makes a named tuple."""
        source = self._script.class_named(name)
        return source is not None and source.is_tuple

    def ask(self, code: _Code, arguments: tuple[Tokens, ...], caller: _Context | None) -> Tokens:
        """Return what a function returns as far as it is known; if it is more, tell the caller."""
        key = id(code), arguments
        context = self._contexts.get(key)
        if context is None:
            if len(self._contexts) >= _MAX_CONTEXTS:
                raise UnsupportedFileError("more calls than any model has")
            context = self._contexts[key] = _Context(code, arguments)
            self._waiting[context] = None
        if caller is not None:
            context.callers.add(caller)
        return context.result


class _Evaluation:
    """One function with certain arguments, all of whose steps count at once."""

    def __init__(self, follower: _Follower, context: _Context) -> None:
        self._follower = follower
        self._held = follower.held
        self._flow = follower.flow
        self._context = context
        self._place = context.code.place
        function = context.code.function
        self._values: list[Tokens] = [frozenset()] * function.slots
        self._values[steps.UNKNOWN], self._values[steps.FALSE] = NOTHING, FALSE
        for slot, value in zip(function.parameters, context.arguments, strict=False):
            self._values[slot] = value
        for slot in function.parameters[len(context.arguments) :]:
            self._values[slot] = NOTHING
        self._self = self._own_module() if context.code.source else None

    def _own_module(self) -> int | None:
        modules = self._modules(self._context.arguments[0])
        return modules[0] if len(modules) == 1 else None

    def run(self) -> Tokens:
        for _ in range(_MAX_ROUNDS):
            if not self._round():
                break
        else:
            everything = frozenset(token for tokens in self._values for token in tokens)
            self._hand_over(everything, "code that is too intricate")
        for step in self._context.code.function.steps:
            self._take_effect(step)
        returned = [
            self._values[step.value]
            for step in self._context.code.function.steps
            if isinstance(step, steps.Return)
        ]
        return NOTHING.union(*returned)

    def _round(self) -> bool:
        """Carry values on by one step each; return whether any became more."""
        has_grown = False
        for step in self._context.code.function.steps:
            if isinstance(step, steps.Join):
                found = frozenset(
                    token for source in step.sources for token in self._values[source]
                )
            elif isinstance(step, steps.Load):
                found = self._loaded(self._values[step.source], step.attribute)
            elif isinstance(step, steps.Call):
                found = self._called(step)
            else:
                continue
            if not found <= self._values[step.target]:
                self._values[step.target] |= found
                has_grown = True
        return has_grown

    def _loaded(self, tokens: Tokens, attribute: str) -> Tokens:
        found: set[tuple[str, object]] = set()
        for token in tokens:
            kind, what = token
            if kind == "module" and isinstance(what, int):
                found |= self._held.attribute(what, attribute)
            else:
                # A part of what holds a tensor may be that tensor.
                found |= {token, *NOTHING} if kind == "storage" else NOTHING
        return frozenset(found)

    # Calls

    def _modules(self, tokens: Tokens) -> list[int]:
        return [what for kind, what in tokens if kind == "module" and isinstance(what, int)]

    def _called(self, step: steps.Call) -> Tokens:
        arguments = tuple(self._values[slot] or NOTHING for slot in step.arguments)
        if step.receiver is None:
            return self._function(step.name, arguments)
        receiver = self._values[step.receiver]
        if not receiver:
            return receiver  # What it is is not known yet.
        result = NOTHING
        modules = self._modules(receiver)
        for module in modules:
            result |= self._method(module, step.name, arguments)
        if len(modules) < len(receiver - NOTHING) or not modules:
            # A method of something that is no module.
            for tokens in (receiver - {("module", module) for module in modules}, *arguments):
                self._hand_over(tokens, step.name)
        return result

    def _function(self, name: str, arguments: tuple[Tokens, ...]) -> Tokens:
        if not _matter(arguments):
            return NOTHING
        if code := self._follower.function(name):
            return self._follower.ask(code, arguments, self._context)
        if not self._follower.is_tuple(name):
            for tokens in arguments:
                self._hand_over(tokens, type_name_of(name))
        return NOTHING.union(*arguments)

    def _method(self, module: int, name: str, arguments: tuple[Tokens, ...]) -> Tokens:
        if module not in self._held.holding and not _matter(arguments):
            return NOTHING
        code = self._follower.method(module, name)
        source = self._held.modules[module].source
        if code is None or source.has_hooks:
            for tokens in arguments:
                self._hand_over(tokens, f"{type_name_of(source.name)}.{name}")
        if code is None:
            return NOTHING
        receiver: Tokens = frozenset({("module", module)})
        return self._follower.ask(code, (receiver, *arguments), self._context)

    # Effects

    def _take_effect(self, step: steps.Step) -> None:
        if isinstance(step, steps.Write):
            self._write(self._values[step.value], f"is written by {step.name} in {self._place}")
        elif isinstance(step, steps.HandOver):
            for slot in step.values:
                self._hand_over(self._values[slot], step.name)
        elif isinstance(step, steps.Store):
            self._store(step)
        elif isinstance(step, steps.Normalise):
            self._normalise(step)
        elif isinstance(step, steps.Use):
            self._use_flags(self._values[step.value])

    def _write(self, tokens: Tokens, how: str) -> None:
        # What a layer does to its own count is judged with its code.
        own = self._held.counts(self._self) if self._self in self._held.layers else set()
        for key in self._held.storages(tokens) - own:
            self._flow.written.setdefault(key, how)

    def _hand_over(self, tokens: Tokens, name: str) -> None:
        if tokens > NOTHING or (tokens and not tokens & NOTHING):
            how = f"is handed to {name} in {self._place}, which may change it"
            for key in self._held.storages(tokens):
                self._flow.written.setdefault(key, how)
            self._use_flags(tokens)

    def _store(self, step: steps.Store) -> None:
        value = self._values[step.value]
        self._write(value, f"is kept under another name by {self._place}")
        self._use_flags(value)
        for module in self._modules(self._values[step.owner]):
            if step.attribute == "training" and module in self._held.layers:
                if value != FALSE and module != self._self:
                    how = f"other code sets its training flag ({self._place})"
                    self._flow.used_flags.setdefault(module, how)
            elif module != self._self or step.attribute != COUNT:
                found = self._held.attribute(module, step.attribute)
                self._write(found, f"is assigned anew by {self._place}")

    def _normalise(self, step: steps.Normalise) -> None:
        flags = self._values[step.flag]
        if flags == FALSE:
            return
        tokens = NOTHING.union(*(self._values[slot] for slot in step.statistics))
        storages = self._held.storages(tokens)
        if self._is_own(storages) and step.name == "batch_norm":
            return  # What a layer does itself is judged with its code.
        if self._goes_by_flag_of_layer(flags, step.flag_path, storages):
            return
        self._use_flags(flags)
        for key in storages:
            place = f"{step.name} in {self._place}"
            self._flow.normalised.setdefault(key, place)
            how = f"serves {place} by another flag than the layer's own"
            self._flow.written.setdefault(key, how)

    def _is_own(self, storages: set[str]) -> bool:
        return self._self in self._held.layers and storages <= self._held.own(self._self)

    def _goes_by_flag_of_layer(
        self, flags: Tokens, path: tuple[str, ...] | None, storages: set[str]
    ) -> bool:
        """Return whether a flag is that of the layer whose statistics they are, read right here.

        That reading becomes False with the layer.
        """
        if self._self is None or path is None or len(flags) != 1:
            return False
        layer = module_at(self._held.modules[self._self].value, path)
        return (
            layer is not None
            and flags == {("flag", id(layer))}
            and storages <= self._held.own(id(layer))
        )

    def _use_flags(self, tokens: Iterable[tuple[str, object]]) -> None:
        for kind, what in tokens:
            if kind == "flag" and isinstance(what, int) and what != self._self:
                how = f"other code goes by its training flag ({self._place})"
                self._flow.used_flags.setdefault(what, how)


def _matter(arguments: Iterable[Tokens]) -> bool:
    """Return whether any of them is something that is followed."""
    return any(kind not in ("unknown", "false") for tokens in arguments for kind, _ in tokens)
