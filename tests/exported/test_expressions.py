"""What PyTorch evaluates of a program is arithmetic, or it is not evaluated."""

import pytest

from frozenbn_cli.exported.expressions import is_plain_guard, is_plain_size

SIZES = [
    "s0",
    "2*s77 + 1",
    "Symbol('s77', positive=True, integer=True)",
    "Mul(Integer(16), Symbol('s77', positive=True, integer=True))",
    "FloorDiv(Add(Symbol('s3', integer=True), Integer(-1)), Integer(2))",
    "Max(1, s0)",
    "(s0//2)**2",
    "Float('0.5', precision=53)",
    "u0 >= 0",
]
GUARDS = [
    "L['x'].size()[0] == 2*L['y'].size()[1]",
    "L['x']['k'].size()[0] % 8 == 0",
    "L['args'][0].size()[0] >= 2 and L['x'].size()[0] <= 9",
    "not (L['x'].size()[0] // 2 == 1)",
    "L['scale'] == 2.0",
    "L['mode'] == 'nearest'",
    "math.isnan(L['scale'])",
    "L['x'].stride()[0] > 1",
    "Mod(L['x'].size()[2], 4) == 0",
]
NEITHER = [
    "__import__('os').system('true')",
    "open('file')",
    "().__class__.__bases__[0].__subclasses__()",
    "s0.__class__",
    "[s0 for s0 in (1,)]",
    "lambda: 1",
    "f'{s0}'",
    "(s0 := 1)",
    "s0 if True else exit()",
    "Symbol('s0', evil=open('file'))",
    "Symbol(*[1])",
    "9**9**9",
    "exit",
    "s0\nimport os",
    "\u017f0",
    "",
    "(" * 3000 + "1" + ")" * 3000,
    "1 +" * 3000 + "1",
    "s0[print(1)]",
    "math.__loader__",
    "L.__class__",
    "L['x'].size().__class__",
    "L['x'].sum()",
    'L["x"].size()[0] == 1',
    "L['a\\'b'] == 1",
]


@pytest.mark.parametrize("text", SIZES)
def test_sizes_that_pytorch_writes_are_plain(text: str) -> None:
    assert is_plain_size(text)


@pytest.mark.parametrize("text", GUARDS)
def test_guards_that_pytorch_writes_are_plain(text: str) -> None:
    assert is_plain_guard(text)


@pytest.mark.parametrize("text", NEITHER)
def test_nothing_else_is(text: str) -> None:
    assert not is_plain_size(text)
    assert not is_plain_guard(text)


@pytest.mark.parametrize("text", GUARDS[:2])
def test_a_guard_is_no_size(text: str) -> None:
    assert not is_plain_size(text)
