"""The record of a conversion in words."""

from dataclasses import replace
from pathlib import Path

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import ConversionRecord, RecordedClaim
from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.reports.inspections import describe_inspection
from frozenbn_cli.reports.records import record_facts
from frozenbn_cli.selection import Selection
from tests.builders.files import save, small_state

OLD = ConversionRecord(
    "0.0.9", {"file": "a.pt", "sha256": "0" * 64, "size_bytes": 44_700_000}, {}, ("contents",)
)


def test_tells_from_what_when_and_how(tmp_path: Path) -> None:
    options = ConvertOptions(eps=1e-3, selection=Selection(("bn*",), ("bn2",)))
    source = save(tmp_path / "a.pt", {"model": small_state()})
    result = convert_file(source, options=options)

    facts = dict(describe_inspection(inspect_file(result.output_path)).record)

    assert facts["made from"].startswith("a.pt (")
    assert facts["sha256"] == result.input_sha256
    assert facts["made on"].endswith(" UTC")
    assert facts["frozen"] == "1 layer"
    assert facts["eps"] == "0.001 given"
    assert facts["selection"] == "only bn*, without bn2"
    assert facts["options"] == "eps 0.001 given"
    assert facts["layers"].startswith("equal: 1 layer")
    assert facts["model"].startswith("not verified: a state dict holds no model")


def test_an_older_record_says_what_it_can() -> None:
    facts = dict(record_facts(OLD))

    assert facts["made from"] == "a.pt (44.7 MB)"
    assert facts["made by"] == "frozenbn 0.0.9"
    assert "older versions" in facts["made on"]
    assert "older versions" in facts["selection"]
    assert facts["verified"] == "contents equal"


def test_counts_the_layers_of_each_eps() -> None:
    layers = {"a": Eps(1e-5, "read"), "b": Eps(1e-3, "given"), "c": Eps(1e-5, "read")}

    facts = dict(record_facts(replace(OLD, layers=layers)))

    assert facts["eps"] == "1e-05 read (2), 0.001 given (1)"


def test_what_a_record_says_stays_text() -> None:
    record = replace(
        OLD,
        source={"file": "\x1b[31m"},
        options={"include": 3, "key": "\n", "dims_of": {"bn": 2}},
        claims=(RecordedClaim("model\x07", "equal", "\x1b"),),
    )

    for label, value in record_facts(record):
        assert value.isprintable()
        assert label.isprintable()


def test_a_file_that_nobody_converted_has_none(tmp_path: Path) -> None:
    assert not describe_inspection(inspect_file(save(tmp_path / "a.pt", small_state()))).record
