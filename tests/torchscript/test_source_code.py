"""Code is read without being run, and changed by spans of bytes."""

from __future__ import annotations

import pytest

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.torchscript.source_code import (
    CodeFile,
    apply_edits,
    dotted,
    file_of,
    type_name_of,
)

CODE = """op_version_set = 1
class Größe(Module):
  __parameters__ = ["weight", ]
  weight : Tensor
  try : __torch__.a.from.Größe
  __annotations__["0"] = __torch__.a.b.C
  eps : Final[float] = 0.001
  label : Final[str] = "__torch__.a.b.C, größer"
  def forward(self: __torch__.a.b.Größe, from: Tensor) -> Tensor:
    größe = "ß __torch__.a.b.C"; x = getattr(self, "0").lambda.forward(from, )
    return x
class Pair(NamedTuple):
  first : Tensor
""".encode()


def file() -> CodeFile:
    return CodeFile("__torch__/a/b.py", CODE)


def test_finds_classes_with_their_attributes() -> None:
    source = file().classes["__torch__.a.b.Größe"]

    assert source.is_module
    assert not file().classes["__torch__.a.b.Pair"].is_module
    assert source.listed("__parameters__") == ["weight"]
    assert source.listed("__buffers__") == []
    assert source.annotation("0") == "__torch__.a.b.C"
    assert source.annotation("try") == "__torch__.a.from.Größe"
    assert source.annotation("missing") == ""
    assert (source.constant("eps"), source.constant("weight")) == (0.001, None)
    assert file().header == b"op_version_set = 1\n"


def test_places_are_bytes_also_behind_letters_of_several() -> None:
    read = file()
    source = read.classes["__torch__.a.b.Größe"]

    start, end = read.span(source.methods[0].body[1])

    assert read.text[start:end].decode() == 'x = getattr(self, "0").lambda.forward(from, )'


@pytest.mark.parametrize(
    ("name", "count"), [("__torch__.a.b.C", 1), ("__torch__.a.b.Größe", 1), ("__torch__.a", 0)]
)
def test_references_are_whole_names_and_no_text(name: str, count: int) -> None:
    read = file()

    places = list(read.references(read.tree, name))

    assert [read.text[start:end].decode() for start, end in places] == [name] * count


def test_names_that_are_keywords_are_read_as_they_stand() -> None:
    read = file()
    call = read.classes["__torch__.a.b.Größe"].methods[0].body[1].value  # type: ignore[attr-defined]

    assert dotted(call.func) == ("self", "0", "lambda", "forward")


def test_edits_do_not_disturb_each_other() -> None:
    edits = [(4, 6, b"two"), (0, 1, b""), (5, 6, b"lost"), (6, 6, b"!")]

    assert apply_edits(b"0123456789", edits, start=0, end=8) == b"123two!67"


def test_types_lie_in_files_of_their_own() -> None:
    name = "__torch__.a.___torch_mangle_3.B"

    assert file_of(name) == "__torch__/a/___torch_mangle_3.py"
    assert type_name_of(name) == "a.B"


@pytest.mark.parametrize("text", [b"class (", b"\xff", b"a\r", b"a\0", b"(" * 5000])
def test_refuses_what_is_no_code(text: bytes) -> None:
    with pytest.raises(DamagedFileError, match=r"no code of TorchScript|control characters"):
        CodeFile("__torch__.py", text)
