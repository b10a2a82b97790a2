"""Rewrites a TorchScript archive so that chosen BatchNorm layers are frozen ones.

Objects that share a type may part ways: where only some are frozen, the type is cloned, and so are
the types of the modules around it, up the tree. Everything that is not named in a `Rewriting` goes
into the new archive byte for byte.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.pickles.tensor_calls import without_gradient
from frozenbn_cli.pickles.values import Call, Global
from frozenbn_cli.pickles.writer import write_pickle
from frozenbn_cli.torchscript.batch_norm_code import module_reads
from frozenbn_cli.torchscript.object_tree import children_first, lost_storages
from frozenbn_cli.torchscript.script_archive import (
    ScriptArchive,
    ScriptModule,
    is_tensor_call,
    module_at,
)
from frozenbn_cli.torchscript.source_code import (
    ClassSource,
    CodeFile,
    Span,
    apply_edits,
    file_of,
    type_name_of,
)

__all__ = ["rewrite"]

_COUNT = "num_batches_tracked"
_AFFINE = ("weight", "bias")
_SYNCHRONISED = "torch.nn.modules.batchnorm.SyncBatchNorm"
_MANGLE = re.compile(r"___torch_mangle_(\d+)")


def rewrite(script: ScriptArchive, frozen: Collection[str]) -> Rewriting:
    """Return how an archive changes when the layers of these names are frozen.

    Args:
        script: The archive.
        frozen: Names of layers whose code has no obstacle; of a layer with several, all.

    Raises:
        UnsupportedFileError: Code refers to a type that has to change in an unexpected place.
    """
    return _Rewriter(script, frozen).run()


@dataclass(frozen=True, slots=True)
class _Type:
    """What a type becomes.

    Attributes:
        old: Its qualified name before.
        frozen: Whether its objects become frozen layers.
        keeps_count: Whether a frozen one keeps its ``num_batches_tracked``.
        children: The new types of those attributes whose types change, by their indices.
        frozen_reads: Which reads of another module's training flag become False, by place.
    """

    old: str
    frozen: bool = False
    keeps_count: bool = False
    children: tuple[tuple[str, int], ...] = ()
    frozen_reads: tuple[tuple[int, int], ...] = ()

    @property
    def changes(self) -> bool:
        return self.frozen or bool(self.children) or bool(self.frozen_reads)


@dataclass(slots=True)
class _Rewriter:
    script: ScriptArchive
    names: Collection[str]
    _frozen: dict[int, Call] = field(default_factory=dict)
    _keeps_count: set[int] = field(default_factory=set)
    _types: dict[_Type, int] = field(default_factory=dict)
    _by_index: list[_Type] = field(default_factory=list)
    _type_of: dict[int, int] = field(default_factory=dict)
    _new_names: dict[int, str] = field(default_factory=dict)
    _sources: dict[str, ClassSource] = field(default_factory=dict)
    _example: dict[str, ScriptModule] = field(default_factory=dict)
    _next_mangle: int = 0

    def run(self) -> Rewriting:
        modules = children_first(self.script)
        self._example = {module.source.name: module for module in modules.values()}
        self._sources = {module.source.name: module.source for module in modules.values()}
        wanted = [module for module in self.script.modules if module.name in self.names]
        self._frozen = {id(module.value): module.value for module in wanted}
        self._find_counts_in_use(modules)
        for module in modules.values():
            self._type_of[id(module.value)] = self._intern(self._become(module))
        self._name_types()
        replaced, dropped = self._code()
        tree = self._rebuilt(modules)
        replaced[f"{self.script.root}data.pkl"] = write_pickle(tree, for_torchscript=True)
        dropped |= lost_storages(self.script, tree)
        kept = frozenset(item.name for item in wanted if id(item.value) in self._keeps_count)
        return Rewriting(replaced, frozenset(dropped), kept)

    # Which objects get which type

    def _find_counts_in_use(self, modules: Mapping[int, ScriptModule]) -> None:
        """Note the frozen layers whose count is read by code that stays."""
        for module in modules.values():
            for path, _ in self._reads(module.source, _COUNT):
                layer = module_at(module.value, path)
                # A module from who knows where may be any.
                found = self._frozen if layer is None else {id(layer)} & self._frozen.keys()
                self._keeps_count |= set(found)
        for key in self._frozen:
            text = self._frozen_text(modules[key].source, "__torch__.X.Y", keeps_count=False)
            if b"." + _COUNT.encode() in text:
                self._keeps_count.add(key)

    def _reads(self, source: ClassSource, name: str) -> list[tuple[tuple[str, ...], Any]]:
        """Return where a class reads this attribute of other modules."""
        start, end = source.file.line_span(source.node)
        elsewhere = re.compile(rb"(?<!\bself)\." + name.encode() + rb"\b")
        if not elsewhere.search(source.file.text, start, end):
            return []
        return list(module_reads(source, name))

    def _become(self, module: ScriptModule) -> _Type:
        value, source = module.value, module.source
        is_frozen = id(value) in self._frozen
        children = []
        for attribute, part in value.state.items():
            index = self._type_of.get(id(part)) if isinstance(part, Call) else None
            if index is None:
                continue
            new = self._by_index[index]
            # Behind an interface, any type will do.
            if new.changes and source.annotation(attribute) == new.old:
                children.append((attribute, index))
        reads = []
        if not is_frozen:
            for path, node in self._reads(source, "training"):
                layer = module_at(value, path)
                is_read = isinstance(node.ctx, ast.Load)
                if is_read and layer is not None and id(layer) in self._frozen:
                    reads.append(source.file.span(node))
        return _Type(
            source.name,
            is_frozen,
            is_frozen and id(value) in self._keeps_count,
            tuple(children),
            tuple(reads),
        )

    def _intern(self, new: _Type) -> int:
        if new not in self._types:
            self._by_index.append(new)
        return self._types.setdefault(new, len(self._types))

    def _name_types(self) -> None:
        texts = [*self.script.archive.records, *self._sources]
        numbers = [int(found[1]) for text in texts for found in _MANGLE.finditer(text)]
        self._next_mangle = max(numbers, default=-1) + 1
        # The old name stays with the objects that do not change, or else with the first kind.
        taken = {new.old for new in self._types if not new.changes}
        for new, index in self._types.items():
            if not new.changes:
                self._new_names[index] = new.old
            elif new.frozen:
                self._new_names[index] = self._fresh(*_frozen_home(new.old))
            elif new.old not in taken:
                self._new_names[index] = new.old
                taken.add(new.old)
            else:
                module, _, name = new.old.rpartition(".")
                self._new_names[index] = self._fresh(_MANGLE.sub("", module).rstrip("."), name)

    def _fresh(self, module: str, name: str) -> str:
        module = module.replace("..", ".")
        self._next_mangle += 1
        return f"{module}.___torch_mangle_{self._next_mangle - 1}.{name}"

    # Code

    def _code(self) -> tuple[dict[str, bytes], set[str]]:
        """Return the new texts by record, and the records that go."""
        texts: dict[str, bytes] = {}
        edits: dict[str, list[Span]] = {}
        for new, index in self._types.items():
            source, name = self._sources[new.old], self._new_names[index]
            text = self._text(source, new, name)
            if name == new.old:
                start, end = source.file.line_span(source.node)
                if text != source.file.text[start:end]:
                    edits.setdefault(source.file.path, []).append((start, end, text))
            elif source.has_hooks:
                raise UnsupportedFileError(
                    f"only some modules of the type {new.old} change, and it has forward hooks"
                )
            else:
                texts[file_of(name)] = source.file.header + text
        gone = {new.old for new in self._types} - set(self._new_names.values())
        for name in gone:
            source = self._sources[name]
            span = (*source.file.line_span(source.node), b"")
            edits.setdefault(source.file.path, []).append(span)
        dropped: set[str] = set()
        for path, spans in edits.items():
            file = self.script.file(path)
            text = apply_edits(file.text, spans, start=0, end=len(file.text))
            dropped.add(f"{self.script.root}code/{path}.debug_pkl")
            if text.strip() == file.header.strip():
                dropped.add(f"{self.script.root}code/{path}")
            else:
                texts[path] = text
        self._rename_references(gone, texts, dropped)
        known = self.script.archive.records.keys()
        records = {f"{self.script.root}code/{path}": text for path, text in texts.items()}
        return records, dropped & known

    def _text(self, source: ClassSource, new: _Type, name: str) -> bytes:
        if new.frozen:
            return self._frozen_text(
                source, name, keeps_count=new.keeps_count, children=new.children
            )
        spans = self._renamed(source, name) + self._retyped(source, new.children)
        spans += [(*span, b"False") for span in new.frozen_reads]
        return _class_text(source, spans)

    def _frozen_text(
        self,
        source: ClassSource,
        name: str,
        *,
        keeps_count: bool,
        children: Iterable[tuple[str, int]] = (),
    ) -> bytes:
        file = source.file
        spans = self._renamed(source, name) + self._retyped(source, children)
        spans += self.script.batch_norm_code(self._example[source.name]).edits
        parameters, buffers = source.listed("__parameters__"), source.listed("__buffers__")
        moved = [role for role in _AFFINE if role in parameters]
        parameters = [item for item in parameters if item not in moved]
        buffers = moved + [item for item in buffers if keeps_count or item != _COUNT]
        for list_name, items in (("__parameters__", parameters), ("__buffers__", buffers)):
            if list_name in source.lists:
                spans.append((*file.span(source.lists[list_name]), _list_text(items)))
        if not keeps_count and _COUNT in source.attribute_lines:
            spans.append((*file.line_span(source.attribute_lines[_COUNT]), b""))
        return _class_text(source, spans)

    def _renamed(self, source: ClassSource, name: str) -> list[Span]:
        if name == source.name:
            return []
        start, _ = source.file.span(source.node)
        begin = source.file.text.index(b"(", start)
        spans: list[Span] = [(start, begin, b"class " + name.rpartition(".")[2].encode())]
        spans += [
            (*place, name.encode()) for place in source.file.references(source.node, source.name)
        ]
        return spans

    def _retyped(self, source: ClassSource, children: Iterable[tuple[str, int]]) -> list[Span]:
        return [
            (*source.file.span(source.annotations[attribute]), self._new_names[index].encode())
            for attribute, index in children
            if index in self._new_names
        ]

    def _rename_references(
        self, gone: Collection[str], texts: dict[str, bytes], dropped: set[str]
    ) -> None:
        """Name the new type where one that is gone is still spoken of; refuse if there are several.

        A trace hands modules to methods of others, whose arguments have their types.
        """
        encoded = {name: name.encode() for name in gone}
        for path in {*self.script.code_paths, *texts}:
            if f"{self.script.root}code/{path}" in dropped:
                continue
            text = texts.get(path) or self.script.text(path)
            if not any(name in text for name in encoded.values()):
                continue
            file = CodeFile(path, text)
            unused = {cls.node for cls in file.classes.values() if not self._is_used(cls.name)}
            spans = [
                (*place, self._successor(name, path).encode())
                for name in gone
                for node in file.tree.body
                if node not in unused
                for place in file.references(node, name)
            ]
            if spans:
                texts[path] = apply_edits(text, spans, start=0, end=len(text))
                dropped.add(f"{self.script.root}code/{path}.debug_pkl")

    def _successor(self, name: str, path: str) -> str:
        new_names = {
            self._new_names[index] for new, index in self._types.items() if new.old == name
        }
        if len(new_names) > 1:
            raise UnsupportedFileError(
                f"code refers to the type {name} in an unexpected place", where=(f"code/{path}",)
            )
        return new_names.pop()

    def _is_used(self, name: str) -> bool:
        return name in self._new_names.values()

    # Objects

    def _rebuilt(self, modules: Mapping[int, ScriptModule]) -> Call:
        """Return the object tree with its new types and without what frozen layers lose."""
        new_objects: dict[int, Call] = {}
        tensors: dict[int, Call] = {}
        for key, module in modules.items():
            index = self._type_of[key]
            new = self._by_index[index]
            state = {
                name: new_objects.get(id(part), part) for name, part in module.attributes.items()
            }
            if new.frozen:
                if not new.keeps_count:
                    state.pop(_COUNT, None)
                parameters = module.source.listed("__parameters__")
                for role in filter(parameters.__contains__, _AFFINE):
                    tensor = state.get(role)
                    if isinstance(tensor, Call) and is_tensor_call(tensor):
                        state[role] = tensors.setdefault(id(tensor), without_gradient(tensor))
            home, _, name = self._new_names[index].rpartition(".")
            new_objects[key] = Call(
                Global(home, name), module.value.arguments, None, True, state=state, has_state=True
            )
        return new_objects[id(self.script.pickle.value)]


def _frozen_home(old: str) -> tuple[str, str]:
    name = "BatchNormNd" if type_name_of(old) == _SYNCHRONISED else old.rpartition(".")[2]
    return "__torch__.frozenbn_cli.nn", f"Frozen{name}"


def _class_text(source: ClassSource, spans: Iterable[Span]) -> bytes:
    start, end = source.file.line_span(source.node)
    return apply_edits(source.file.text, spans, start=start, end=end)


def _list_text(names: Iterable[str]) -> bytes:
    return ("[" + "".join(f'"{name}", ' for name in names) + "]").encode()
