"""Choosing layers by glob patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frozenbn_cli.errors import UsageError
from frozenbn_cli.selection import Selection

NAMES = ["backbone.bn1", "backbone.layer1.0.bn1", "backbone.layer1.1.bn1", "head.bn"]


def selected(selection: Selection) -> list[str]:
    return [name for name in NAMES if selection.reason_left_out([name]) is None]


def test_selects_everything_without_patterns() -> None:
    assert selected(Selection.of()) == NAMES


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("head.bn", (), NAMES[3:]),
        ("backbone.*", (), NAMES[:3]),
        ("*.layer?.0.*", (), NAMES[1:2]),
        ("*.[!1].bn1", (), NAMES[1:2]),
        (["head.*", "backbone.bn1"], (), [NAMES[0], NAMES[3]]),
        ((), ["head.*", "*.1.*"], NAMES[:2]),
        ("backbone.*", "backbone.layer1.*", NAMES[:1]),
        ("head.*", "*", []),
    ],
)
def test_selects_by_patterns(
    include: str | list[str], exclude: str | list[str], expected: list[str]
) -> None:
    assert selected(Selection.of(include, exclude)) == expected


def test_takes_one_pattern_or_several() -> None:
    assert Selection.of("a*") == Selection.of(["a*"]) == Selection.of(iter(["a*"]))
    assert Selection.of(exclude="a*") == Selection(include=(), exclude=("a*",))


def test_pattern_matches_the_whole_name_and_its_case() -> None:
    selection = Selection.of("bn")
    assert selection.reason_left_out(["bn"]) is None
    for name in ("bn1", "head.bn", "BN"):
        assert selection.reason_left_out([name]) is not None


def test_layer_is_selected_by_any_of_its_names() -> None:
    names = ["stem.bn", "head.bn"]
    assert Selection.of("head.*").reason_left_out(names) is None
    assert Selection.of("*", "head.*").reason_left_out(names) == "excluded by 'head.*'"


def test_names_the_patterns_in_the_reason() -> None:
    selection = Selection.of(["a.*", "b.*"], ["*.skip"])
    assert selection.reason_left_out(["c.bn"]) == "not included by 'a.*' or 'b.*'"
    assert selection.reason_left_out(["a.skip"]) == "excluded by '*.skip'"


def test_accepts_patterns_that_have_an_effect() -> None:
    Selection.of(["head.*", "*.bn1"], "backbone.*").check(NAMES)
    Selection.of().check([])


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("hed.*", "Is it 'head.bn' or 'head'?"),
        (
            "xyz",
            "The layers are named backbone.bn1, backbone.layer1.0.bn1, backbone.layer1.1.bn1, ….",
        ),
    ],
)
def test_refuses_a_pattern_without_effect(option: str, pattern: str, advice: str) -> None:
    selection = Selection.of(**{option: ["head.*", pattern]})
    with pytest.raises(UsageError) as caught:
        selection.check(iter(NAMES))
    assert str(caught.value) == (
        f"{option} pattern {pattern!r} matches no BatchNorm layer. {advice}"
    )


def test_refuses_a_pattern_where_there_is_no_layer() -> None:
    with pytest.raises(UsageError) as caught:
        Selection.of("*").check([])
    assert str(caught.value) == "include pattern '*' matches no BatchNorm layer"


@given(st.text(st.characters(exclude_characters="*?[", codec="utf-8")))
def test_name_without_wildcards_selects_itself(name: str) -> None:
    selection = Selection.of(name)
    selection.check([name])
    assert selection.reason_left_out([name]) is None
    assert selection.reason_left_out([name + "x"]) is not None
