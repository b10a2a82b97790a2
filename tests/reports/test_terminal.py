"""Golden reports. To write them anew after a change on purpose: FROZENBN_WRITE_GOLDEN=1."""

import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from rich.console import Console, RenderableType
from safetensors.torch import save_file

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.errors import InputError, RefusedError, UsageError
from frozenbn_cli.inspection import Inspection, inspect_file
from frozenbn_cli.many_files.file_results import ConversionSummary, FileResult
from frozenbn_cli.reports.batch_documents import batch_document
from frozenbn_cli.reports.batch_text import batch_report
from frozenbn_cli.reports.console import ProgressBar, make_console, print_report
from frozenbn_cli.reports.conversions import describe_conversion
from frozenbn_cli.reports.description import Section
from frozenbn_cli.reports.documents import (
    conversion_document,
    error_document,
    inspection_document,
    to_json,
    verification_document,
)
from frozenbn_cli.reports.inspections import describe_inspection
from frozenbn_cli.reports.overview import overview_report
from frozenbn_cli.reports.terminal import section_report
from frozenbn_cli.reports.verifications import describe_verification
from frozenbn_cli.reports.words import size_text
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.files import VerificationResult, verify_files
from frozenbn_cli.verification.terms import VerifyOptions
from tests.builders.files import State, batch_norm, nested, save, small_state

GOLDEN = Path(__file__).with_name("golden")


def many_layers() -> State:
    """Return a state dict of 20 layers: one of small variances, one 1d, one hardly formed."""
    state: State = {}
    for index in range(20):
        state |= nested(
            **{f"layer{index}.conv": {"weight": torch.ones(4 + index, 3, 1, 1)}},
            **{f"layer{index}.bn": batch_norm(4 + index, tracked=3 if index == 7 else 900)},
        )
    state["layer4.bn.running_var"][:3] = 0
    state["layer7.bn.running_var"].clamp_(min=0.75)  # Of the initial 1, 0.9 ** 3 is left.
    state |= nested(**{"head.fc": {"weight": torch.ones(9, 3)}}, **{"head.norm": batch_norm(9)})
    return state


def broken() -> State:
    state = small_state()
    state["bn2.running_var"][0] = -1
    return state


def converted(
    tmp_path: Path, state: State, name: str = "model.pt", *, summarize: bool = False
) -> ConversionResult:
    source = save(tmp_path / name, state)
    try:
        result = convert_file(source, options=ConvertOptions(summarize=summarize))
    except RefusedError as error:
        result = error.result
    return replace(
        result,
        seconds={"plan": 0.25, "write": 0.5, "verify": 1.0},
        input_path=Path(name),
        output_path=Path(name).with_suffix(".frozen.safetensors"),
        input_bytes=123_456,
        output_bytes=result.output_bytes and 120_000,
        input_sha256=result.input_sha256 and "0" * 64,
    )


def printed(
    result: Any,
    *,
    width: int | None = None,
    encoding: str = "utf-8",
    describe: Callable[[Any], Section] = describe_conversion,
    render: Callable[..., RenderableType] | None = None,
    **options: Any,
) -> str:
    """Return the report as a terminal of ``width`` shows it, or as a pipe gets it."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, newline="\n")
    console = make_console(stream)
    if width:
        console = Console(
            file=stream,
            width=width,
            force_terminal=True,
            color_system=None,
            highlight=False,
            markup=False,
            emoji=False,
        )
    report = render(result, console, **options) if render else None
    print_report(console, report or section_report(describe(result), console, **options))
    return buffer.getvalue().decode(encoding)


def assert_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("FROZENBN_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 120, None])
def test_report_of_a_small_model(tmp_path: Path, width: int | None) -> None:
    text = printed(converted(tmp_path, small_state()), width=width)

    assert_golden(f"small_{width or 'piped'}.txt", text)


@pytest.mark.parametrize("width", [80, 120, None])
def test_report_of_many_layers_is_folded(tmp_path: Path, width: int | None) -> None:
    text = printed(converted(tmp_path, many_layers()), width=width)

    assert_golden(f"many_{width or 'piped'}.txt", text)


def test_report_shows_every_layer_on_request(tmp_path: Path) -> None:
    text = printed(converted(tmp_path, many_layers()), all_layers=True)

    assert all(re.search(rf"^layer{index}\.bn ", text, re.M) for index in range(20))


def test_report_of_unhealthy_statistics(tmp_path: Path) -> None:
    assert_golden("unhealthy_80.txt", printed(converted(tmp_path, broken()), width=80))


def test_report_where_nothing_is_to_be_frozen(tmp_path: Path) -> None:
    text = printed(converted(tmp_path, {"fc.weight": torch.ones(2, 2)}), width=80)

    assert_golden("nothing_80.txt", text)


def test_report_in_ascii(tmp_path: Path) -> None:
    text = printed(converted(tmp_path, many_layers()), encoding="ascii")

    assert_golden("many_ascii.txt", text)
    assert text.isascii()


def test_report_in_ascii_escapes_names(tmp_path: Path) -> None:
    state = small_state() | nested(schicht_ä=batch_norm(4))

    assert "schicht_\\xe4" in printed(converted(tmp_path, state), encoding="ascii")


def test_nothing_is_cut_or_wrapped_in_a_pipe(tmp_path: Path) -> None:
    name = "backbone." + ".".join(f"block{index}" for index in range(60))

    text = printed(converted(tmp_path, nested(**{name: batch_norm(4)})))

    assert name in text
    assert "…" not in text


def test_long_names_are_folded_on_a_terminal_not_cut(tmp_path: Path) -> None:
    name = "backbone." + ".".join(f"block{index}" for index in range(20))

    text = printed(converted(tmp_path, nested(**{name: batch_norm(4)})), width=80)

    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert name in "".join(line.split(" ")[0] for line in text.splitlines())


def test_names_are_no_markup(tmp_path: Path) -> None:
    state = nested(**{"[red]a[/oops]": batch_norm(4), ":smile:": batch_norm(5)})

    text = printed(converted(tmp_path, state, "a [v2] x.pth"))

    assert text.startswith("a [v2] x.pth → a [v2] x.frozen.safetensors\n")
    assert "[red]a[/oops]" in text
    assert ":smile:" in text


def test_json_document_of_a_conversion(tmp_path: Path) -> None:
    assert_golden("small.json", to_json(conversion_document(converted(tmp_path, small_state()))))


SCHEMA = json.loads(
    files("frozenbn_cli.reports").joinpath("schema.json").read_text(encoding="utf-8")
)


def inspected(path: Path, **options: object) -> Inspection:
    return replace(
        inspect_file(path, **options), path=Path(path.name), size_bytes=99_999, seconds=0.04
    )  # type: ignore[arg-type]


def inspection_printed(
    inspection: Inspection, *, width: int | None = None, encoding: str = "utf-8", **options: bool
) -> str:
    return printed(
        inspection, width=width, encoding=encoding, describe=describe_inspection, **options
    )


@pytest.mark.parametrize("width", [80, 120, None])
def test_inspection_of_many_layers(tmp_path: Path, width: int | None) -> None:
    text = inspection_printed(inspected(save(tmp_path / "model.pt", many_layers())), width=width)

    assert_golden(f"inspect_many_{width or 'piped'}.txt", text)


def test_inspection_in_ascii(tmp_path: Path) -> None:
    found = inspected(save(tmp_path / "model.pt", many_layers()))

    assert_golden("inspect_many_ascii.txt", inspection_printed(found, encoding="ascii"))


def test_inspection_of_a_training_checkpoint_with_several_models(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in broken().items()}
    path = save(tmp_path / "last.ckpt", {"model": wrapped, "ema": small_state(), "epoch": 3})

    assert_golden("inspect_several_120.txt", inspection_printed(inspected(path), width=120))


def test_inspection_of_a_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4, eps=1e-3), torch.nn.BatchNorm1d(4)]
    model = torch.nn.Sequential(*layers).train()
    model[1].running_mean.normal_()

    text = inspection_printed(inspected(save(tmp_path / "whole.pt", model)), width=120)

    assert_golden("inspect_module_120.txt", text)


def test_inspection_of_a_hostile_file(tmp_path: Path) -> None:
    state: dict[str, object] = {**small_state(), "x": Hostile()}

    text = inspection_printed(inspected(save(tmp_path / "evil.pt", state)), width=80)

    assert_golden("inspect_hostile_80.txt", text)


class Hostile:
    def __reduce__(self) -> object:
        return print, ("never",)


def test_every_document_follows_the_schema(tmp_path: Path) -> None:
    validate = partial(jsonschema.validate, schema=SCHEMA)
    error = UsageError("exists already", where=("out.pt",))
    nan = broken()
    nan["bn1.running_mean"][0] = float("nan")

    states = (small_state(), many_layers(), broken(), {"fc.weight": torch.ones(2, 2)})
    for index, state in enumerate(states):
        result = converted(tmp_path, state, f"{index}.pt")
        validate(json.loads(to_json(conversion_document(result))))
    found = [inspected(save(tmp_path / "a.pt", state)) for state in (nan, many_layers())]
    validate(json.loads(to_json(inspection_document([*found, error]))))
    validate(json.loads(to_json(error_document(None, error))))
    with pytest.raises(jsonschema.ValidationError):
        validate(json.loads(to_json(error_document(None, error) | {"extra": 1})))


def test_json_document_of_an_inspection(tmp_path: Path) -> None:
    found = inspected(save(tmp_path / "model.pt", small_state()))

    assert_golden("inspect_small.json", to_json(inspection_document([found])))


def several_inspected(tmp_path: Path) -> list[Section]:
    states = {
        "broken.pt": broken(), "many.pt": many_layers(), "plain.pt": {"fc.weight": torch.ones(2)},
        "two.ckpt": {"model": small_state(), "ema": small_state()},
        "a rather long folder/with a [v2] name.pth": small_state(),
    }  # fmt: skip
    sections = []
    for name, state in states.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        found = inspect_file(save(tmp_path / name, state))
        sections.append(describe_inspection(replace(found, path=Path(name))))
    sections.append(describe_inspection(InputError("cannot be read", where=("gone.pt",))))
    return sections


@pytest.mark.parametrize("width", [80, 120, None])
def test_overview_of_several_files(tmp_path: Path, width: int | None) -> None:
    sections = several_inspected(tmp_path)

    text = printed(sections, width=width, render=overview_report, hint="--all shows each file")

    assert_golden(f"overview_{width or 'piped'}.txt", text)
    assert all(len(line) <= (width or 1000) for line in text.splitlines())
    assert printed(sections, encoding="ascii", render=overview_report).isascii()


def some_files(count: int) -> list[FileResult]:
    """Return results of which one is skipped, one has a warning, and the last one failed."""
    plain = ConversionSummary(
        outcome="converted", kind="state dict", container="PyTorch ZIP", input_bytes=1_234_000,
        input_sha256="0" * 64, output_format="safetensors", output_bytes=1_200_000, key="",
        prefix="", layers=20, frozen=20, findings={}, claims=(Claim("layers", "equal", "all"),),
    )  # fmt: skip
    results = [
        FileResult(
            path=Path(f"zoo/model{index}.pth"), state="done", summary=plain, seconds=1.25,
            output=Path(f"out/model{index}.frozen.safetensors"),
        )
        for index in range(count)
    ]  # fmt: skip
    warned = replace(plain, findings={"warning": 2, "note": 1}, frozen=19, claims=())
    results[1] = replace(results[1], summary=warned)
    results[2] = replace(results[2], state="skipped", summary=None, seconds=0.125)
    error = InputError("cannot be read", where=("zoo/a [v2].pth",))
    results[-1] = FileResult(path=Path("zoo/a [v2].pth"), state="failed", error=error)
    return results


def batch_printed(results: list[FileResult], total: int = 0, **options: Any) -> str:
    def render(results: list[FileResult], console: Console, **more: Any) -> RenderableType:
        return batch_report(results, console, total=total or len(results), seconds=9.5, **more)

    return printed(results, render=render, **options)


@pytest.mark.parametrize("width", [80, 120, None])
def test_report_of_a_few_files(width: int | None) -> None:
    assert_golden(f"files_{width or 'piped'}.txt", batch_printed(some_files(4), width=width))


def test_report_of_many_files_is_folded(tmp_path: Path) -> None:
    assert_golden("many_files_80.txt", batch_printed(some_files(30), width=80))
    assert batch_printed(some_files(30), width=80, all_files=True).count(".pth") == 30


def test_report_of_many_files_without_trouble_shows_a_few() -> None:
    text = batch_printed([replace(some_files(30)[0]) for _ in range(30)], width=80)

    assert text.count(".pth") == 3
    assert "27 more files · 27 done · --all shows each" in text


def test_report_of_an_interrupted_run_says_how_far_it_came() -> None:
    text = batch_printed(some_files(4)[:2], total=40, table=False)

    assert text == (
        "interrupted after 2 of 40 files: 2 done · 1 of 2 verified · 2.5 MB → 2.4 MB, safetensors"
        " · 9.5 s\n"
        "What is finished stays; the same command with --skip-existing does the rest.\n"
    )


def test_report_of_files_in_ascii() -> None:
    assert batch_printed(some_files(30), encoding="ascii", width=80).isascii()


def test_long_paths_of_files_fold_on_a_terminal() -> None:
    results = some_files(4)
    long = "/".join(f"folder{index}" for index in range(20))
    results[0] = replace(results[0], path=Path(long))

    text = batch_printed(results, width=80)

    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    assert long in batch_printed(results)


def test_document_of_many_files_follows_the_schema() -> None:
    document = json.loads(to_json(batch_document(some_files(4), total=4, seconds=9.5)))

    jsonschema.validate(document, SCHEMA)
    assert document["exit_code"] == 3
    assert document["counts"] == {"done": 2, "skipped": 1, "failed": 1, "unfinished": 0}
    assert document["files"][1]["conversion"]["findings"] == {"error": 0, "warning": 2, "note": 1}
    cut = batch_document(some_files(4)[:2], total=4, seconds=9.5)
    jsonschema.validate(json.loads(to_json(cut)), SCHEMA)
    assert (cut["outcome"], cut["exit_code"]) == ("interrupted", 130)


def test_json_document_of_a_failure() -> None:
    error = UsageError("exists already", where=("out.pt",), advice="Pass --force to replace it.")

    assert json.loads(to_json(error_document("convert", error))) == {
        "schema_version": 1,
        "command": "convert",
        "outcome": "error",
        "error": {
            "kind": "UsageError",
            "message": "out.pt: exists already",
            "advice": "Pass --force to replace it.",
            "exit_code": 2,
        },
    }


def test_json_has_no_numbers_that_json_lacks() -> None:
    assert json.loads(to_json({"worst": [float("nan"), float("inf")]})) == {"worst": ["nan", "inf"]}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (18_801_840, "18.8 MB"),
        (5 * 10**12, "5,000.0 GB"),
    ],
)
def test_sizes_are_in_the_unit_that_suits_them(count: int, text: str) -> None:
    assert size_text(count) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgressBar:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("frozenbn_cli.reports.console._PATIENCE_SECONDS", 0)

    def shown(self, *steps: tuple[str, int, int], stream: io.StringIO, **options: bool) -> str:
        with ProgressBar(stream, **options) as progress:
            for step in steps:
                progress(*step)
        return stream.getvalue()

    def test_names_the_step_and_how_far_it_has_come(self) -> None:
        shown = self.shown(("writing", 0, 100), ("writing", 50, 100), stream=Terminal())

        assert "writing" in shown
        assert "50%" in shown

    def test_a_step_that_nobody_can_measure_has_no_number(self) -> None:
        shown = self.shown(("writing", 50, 100), ("importing torch", 0, 0), stream=Terminal())

        assert "importing torch" in shown.rpartition("writing")[2]
        assert "%" not in shown.rpartition("importing")[2]

    def test_what_is_done_shows_no_full_bar(self) -> None:
        shown = self.shown(("writing", 50, 100), ("writing", 100, 100), stream=Terminal())

        assert "100%" not in shown

    def test_it_is_there_before_any_step_is_named(self) -> None:
        assert "reading" in self.shown(stream=Terminal())

    def test_is_not_shown_for_short_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("frozenbn_cli.reports.console._PATIENCE_SECONDS", 600)

        assert self.shown(("writing", 50, 100), stream=Terminal()) == ""

    def test_is_not_shown_in_a_pipe_or_where_nobody_wants_it(self) -> None:
        assert self.shown(("writing", 50, 100), stream=io.StringIO()) == ""
        assert self.shown(("writing", 50, 100), stream=Terminal(), is_wanted=False) == ""

    def test_names_of_steps_stay_text(self) -> None:
        assert "\x1b[31m" not in self.shown(("\x1b[31m", 0, 0), stream=Terminal())


def test_colour_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = converted(tmp_path, small_state())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown() -> str:
        stream = Terminal()
        console = make_console(stream)
        print_report(console, section_report(describe_conversion(result), console))
        return stream.getvalue()

    assert "\x1b[1;32mconverted" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;32m" not in shown()


def test_selection_of_a_dry_run_is_shown_as_planned(tmp_path: Path) -> None:
    options = ConvertOptions(dry_run=True, selection=Selection.of(include="bn1"))

    text = printed(convert_file(save(tmp_path / "a.pt", small_state()), options=options))

    assert "dry run, nothing was written" in text
    assert re.search(r"^bn1 .*planned$", text, re.M)
    assert "left alone: bn2: not included by 'bn1'" in text


# verify


def verified(tmp_path: Path, *, fault: bool, **options: Any) -> VerificationResult:
    """Verify a conversion; a faulty one has other weights and a layer that is live."""
    source = save(tmp_path / "model.pt", small_state())
    state = small_state()
    layers = {"bn1": Eps(1e-5, "given"), "bn2": Eps(1e-5, "given")}
    for name in layers:
        del state[f"{name}.num_batches_tracked"]
    if fault:
        state["conv2.weight"][3, 1] += 0.25
        state["conv1.weight"][0, 0, 0, 0] += 0.125
        del state["fc.weight"]
        del layers["bn1"]
    record = ConversionRecord("0", {}, layers)
    save_file(state, tmp_path / "model.safetensors", {METADATA_KEY: record.to_text()})
    result = verify_files(
        source, tmp_path / "model.safetensors", options=VerifyOptions(eps=1e-5, **options)
    )
    return replace(
        result,
        seconds={"plan": 0.25, "layers": 0.5},
        original_path=Path("model.pt"),
        converted_path=Path("model.safetensors"),
        original_bytes=123_456,
        converted_bytes=120_000,
    )


@pytest.mark.parametrize("width", [80, 120, None])
def test_report_of_equal_files(tmp_path: Path, width: int | None) -> None:
    text = printed(verified(tmp_path, fault=False), width=width, describe=describe_verification)

    assert_golden(f"verify_equal_{width or 'piped'}.txt", text)


@pytest.mark.parametrize("width", [80, 120, None])
def test_report_of_different_files(tmp_path: Path, width: int | None) -> None:
    text = printed(verified(tmp_path, fault=True), width=width, describe=describe_verification)

    assert_golden(f"verify_different_{width or 'piped'}.txt", text)


def test_report_of_files_within_a_tolerance(tmp_path: Path) -> None:
    result = verified(tmp_path, fault=True, atol=1.0)
    text = printed(result, describe=describe_verification, encoding="ascii")

    assert_golden("verify_tolerated_ascii.txt", text)


@pytest.mark.parametrize("fault", [False, True])
def test_the_document_of_a_verification(tmp_path: Path, fault: bool) -> None:
    document = json.loads(to_json(verification_document(verified(tmp_path, fault=fault))))

    jsonschema.validate(document, SCHEMA)
    name = "different" if fault else "equal"
    assert_golden(f"verify_{name}.json", json.dumps(document, indent=2) + "\n")


def test_numbers_that_json_lacks_become_text(tmp_path: Path) -> None:
    original = save(tmp_path / "a.pt", {**small_state(), "z": torch.tensor([1j])})
    state = {**small_state(), "z": torch.tensor([2j])}
    state["fc.weight"][0, 0] = float("nan")
    result = verify_files(original, save(tmp_path / "b.pt", state))

    document = json.loads(to_json(verification_document(result)))

    jsonschema.validate(document, SCHEMA)
    measures = {item["place"]: item["measure"] for item in document["claims"][0]["differences"]}
    assert measures["fc.weight"]["absolute"] == "inf"
    assert measures["z"]["before"] == "1j"
