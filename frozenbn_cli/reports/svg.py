"""Makes a figure of matplotlib a part of a page: its colours and fonts, and names on its points."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["COLOURS", "Spot", "to_svg"]

_SVG = "http://www.w3.org/2000/svg"
_COORDINATES = {"d", "x", "y"}
_NUMBER = re.compile(r"-?\d+\.\d+")
_XLINK = "{http://www.w3.org/1999/xlink}href"

COLOURS = {
    name: f"#00000{number}"
    for number, name in enumerate(("ink", "muted", "line", "accent", "warn", "bad"), 1)
}
"""What stands for each of the page's colours, which are others by day and by night."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a pointer shows some words.

    Attributes:
        left: In points from the left of the figure; its height is that of the axes.
        width: In points.
        words: What is shown.
    """

    left: float
    width: float
    words: str


def to_svg(figure: Figure, name: str, label: str, spots: Iterable[Spot] = ()) -> str:
    """Return a figure as an element of an HTML page.

    Args:
        figure: Drawn with `COLOURS`, with one pair of axes.
        name: Of its own on the page.
        label: What it shows, for those who do not see it.
        spots: Where a pointer shows some words.
    """
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frozenbn"}):
        figure.savefig(
            file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    root = ET.fromstring(file.getvalue())  # noqa: S314  What matplotlib wrote, not the user.
    _clean(root)
    _rename_ids(root, f"{name}-")
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label}
    box = figure.axes[0].get_window_extent()
    points = 72 / figure.dpi
    height = figure.get_size_inches()[1] * 72
    for spot in spots:
        place = {
            "class": "spot",
            "x": f"{spot.left:.1f}",
            "y": f"{height - box.y1 * points:.1f}",
            "width": f"{spot.width:.1f}",
            "height": f"{box.height * points:.1f}",
        }
        ET.SubElement(ET.SubElement(root, "rect", place), "title").text = spot.words
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _clean(root: ET.Element) -> None:
    """Take off what a page has already, and let the page choose colours and fonts."""
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                element.remove(child)
        # HTML knows SVG's names without their namespace.
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        if _XLINK in element.attrib:
            element.set("href", element.attrib.pop(_XLINK))
        _shorten(element)
        style = dict(_declarations(element.get("style", "")))
        if element.tag == "text":
            style = _text_style(style)
        if style:
            element.set("style", "; ".join(f"{name}: {value}" for name, value in style.items()))
        if element.text and not element.text.strip():
            element.text = None
        if element.tail and not element.tail.strip():
            element.tail = None


def _shorten(element: ET.Element) -> None:
    """Round coordinates to a hundredth of a point, and drop a rotation by nothing."""
    for name in _COORDINATES & element.attrib.keys():
        numbers = _NUMBER.sub(
            lambda found: f"{float(found[0]):.2f}".rstrip("0"), element.attrib[name]
        )
        element.set(name, re.sub(r"\.(?=\s|$)|\s+$", "", numbers.replace("  ", " ")))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    variables = {code: f"var(--{name})" for name, code in COLOURS.items()}
    for declaration in style.split(";"):
        name, _, value = declaration.partition(":")
        if value:
            yield name.strip(), variables.get(value.strip(), value.strip())


def _text_style(style: dict[str, str]) -> dict[str, str]:
    """Return the style of a text without its font, of which only the size is kept."""
    size = re.search(r"[\d.]+px", style.pop("font", "") + style.pop("font-size", ""))
    style.pop("font-family", None)
    return style | ({"font-size": size[0]} if size else {})


def _rename_ids(root: ET.Element, prefix: str) -> None:
    """Make the ids of a figure its own, and leave those that nothing refers to."""
    wanted = set()
    for element in root.iter():
        for value in element.attrib.values():
            wanted.update(re.findall(r"(?:^|url\()#([^)]+)", value))
    for element in root.iter():
        if element.attrib.get("id") not in wanted:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, prefix + value)
            else:
                element.set(name, re.sub(r"(^|url\()#(?=[^)]+)", rf"\1#{prefix}", value))
