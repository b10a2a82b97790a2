"""Which steps are told, and how far they have come."""

from pathlib import Path

from torch import nn

from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.stages import begin, telling
from frozenbn_cli.verification.files import verify_files
from frozenbn_cli.verification.terms import VerifyOptions
from tests.builders.files import save

Told = list[tuple[str, int, int]]


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def steps(told: Told) -> list[str]:
    """Return the steps in their order, each where it begins."""
    names = [name for name, _, _ in told]
    return [name for before, name in zip(["", *names], names, strict=False) if name != before]


MODEL_RUN = [
    "loading the model", "building the model", "running the model (1 of 4)",
    "loading the model", "building the model", "running the model (2 of 4)",
    "running the model (3 of 4)",
    "loading the model", "building the model", "running the model (4 of 4)",
]  # fmt: skip


def test_a_step_is_told_when_it_begins_and_as_it_goes_on() -> None:
    told: Told = []

    with telling(lambda *step: told.append(step)):
        count = begin("writing", 10)
        count(4)
        count(6)
        begin("syncing")

    assert told == [("writing", 0, 10), ("writing", 4, 10), ("writing", 10, 10), ("syncing", 0, 0)]


def test_nobody_has_to_be_told() -> None:
    with telling(None):
        begin("writing", 10)(4)


def test_work_within_work_is_told_to_whoever_listens() -> None:
    told: Told = []
    with telling(lambda *step: told.append(step)), telling(None):
        begin("writing")

    assert told == [("writing", 0, 0)]


def test_a_conversion_names_its_steps(tmp_path: Path) -> None:
    told: Told = []
    options = ConvertOptions(
        model=model, input_shapes=((1, 3, 8, 8),), runs=3, force_unhealthy=True
    )

    convert_file(
        save(tmp_path / "a.pt", model().state_dict()),
        options=options,
        progress=lambda *step: told.append(step),
    )

    assert steps(told) == [
        "building the model", "writing", "syncing", "hashing the input", "comparing",
        "running the layers", *MODEL_RUN, "syncing",
    ]  # fmt: skip
    assert ("running the model (2 of 4)", 3, 3) in told


def test_a_verification_names_its_steps(tmp_path: Path) -> None:
    told: Told = []
    source = save(tmp_path / "a.pt", model().state_dict())
    how = ConvertOptions(verify=False, force_unhealthy=True)
    output = convert_file(source, options=how).output_path
    options = VerifyOptions(model=model, input_shapes=((1, 3, 8, 8),), hash_files=True)

    verify_files(source, output, options=options, progress=lambda *step: told.append(step))

    assert steps(told) == [
        "building the model", "comparing", "running the layers", *MODEL_RUN, "hashing",
    ]  # fmt: skip
