"""The record of a conversion: what it tells, that older ones stay readable, and that it fits."""

import json

import pytest

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord, RecordedClaim
from frozenbn_cli.errors import DamagedFileError

FULL = ConversionRecord(
    "0.1.0",
    {"file": "model.pt", "sha256": "0" * 64, "size_bytes": 9},
    {"bn": Eps(1e-3, "given")},
    ("contents",),
    {"to": "safetensors"},
    {"": ("torchvision resnet18 (0.1)",)},
    "2030-01-02T03:04:05Z",
    "2.14.0",
    (RecordedClaim("contents", "equal", "3 entries"), RecordedClaim("model", "not verified", "–")),
)


def read(text: str) -> ConversionRecord | None:
    return ConversionRecord.from_metadata({METADATA_KEY: text})


def test_what_is_written_is_read_back() -> None:
    assert read(FULL.to_text()) == FULL


def test_older_records_stay_readable() -> None:
    document = FULL.to_document()
    for name in ("options", "recognised", "date", "torch", "claims"):
        del document[name]

    found = read(json.dumps(document))

    assert found == ConversionRecord("0.1.0", FULL.source, FULL.layers, ("contents",))
    assert found.to_document() == document


@pytest.mark.parametrize("claims", ["x", [{"name": "model"}], [3]])
def test_claims_of_another_form_are_damage(claims: object) -> None:
    with pytest.raises(DamagedFileError):
        read(json.dumps({**FULL.to_document(), "claims": claims}))


@pytest.mark.parametrize("detail", ["", "short", "x" * 10_000, "é…" * 500, '"\\\n' * 500])
def test_no_claim_takes_more_space_than_the_longest(detail: str) -> None:
    cut = RecordedClaim.cut("model", "not verified", detail)

    longest = RecordedClaim.longest("model")
    record = FULL.found([cut])
    assert len(record.to_text()) <= len(FULL.found([longest]).to_text())
    assert detail.startswith(cut.detail.removesuffix("…"))
    assert cut.detail == detail or cut.detail.endswith("…")


def test_the_claims_that_are_equal_are_the_verified_ones() -> None:
    assert FULL.found(FULL.claims).verified == ("contents",)
    assert FULL.found(()).verified == ()
