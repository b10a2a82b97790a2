"""Reports in files: HTML, Markdown and JSON, from the command line to the page."""

import errno
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Eps
from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.batch_norms.summaries import Spread, Summary
from frozenbn_cli.containers.atomic_output import AtomicOutput
from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.errors import FrozenBNError, OutputError, RefusedError, UsageError
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.reports import html, markdown
from frozenbn_cli.reports.charts import difference_chart, scale_chart, variance_chart
from frozenbn_cli.reports.conversions import describe_conversion
from frozenbn_cli.reports.description import LayerRow, Page
from frozenbn_cli.reports.evidence import difference_rows
from frozenbn_cli.reports.inspections import describe_inspection
from frozenbn_cli.reports.provenance import Provenance
from frozenbn_cli.reports.report_file import ReportFile
from frozenbn_cli.reports.verifications import describe_verification
from frozenbn_cli.verification.claims import Claim, Difference, Measure
from frozenbn_cli.verification.terms import VerifyOptions
from tests.builders.files import State, batch_norm, nested, save, small_state
from tests.cli.test_app import run_here
from tests.reports.test_terminal import (
    Hostile,
    assert_golden,
    broken,
    converted,
    inspected,
    many_layers,
)

WRITTEN = datetime(2030, 1, 2, 3, 4, tzinfo=timezone.utc)
PROVENANCE = Provenance(
    command_line=("frozenbn", "inspect", "my model.pt"),
    date=WRITTEN,
    frozenbn="0.0.0",
    torch="2.0.0",
    python="3.14.0",
)
HOSTILE_NAME = "<script>alert(1)</script>"


def page(*sections: Any, command: Any = "inspect") -> Page:
    return Page(command, PROVENANCE, sections)


class Parsed(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_data(self, text: str) -> None:
        self.words.append(text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pt", small_state())


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    return save(tmp_path / "sick.pt", broken())


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("charts", "drawing", "svg"):
        monkeypatch.delitem(sys.modules, f"frozenbn_cli.reports.{name}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)


class TestHTML:
    def test_is_one_file_that_refers_to_itself_alone(self, tmp_path: Path) -> None:
        found = inspect_file(save(tmp_path / "a.pt", many_layers()), summarize=True)

        parsed = Parsed(html.render(page(describe_inspection(found), describe_inspection(found))))

        ids = [value for _, found in parsed.tags for name, value in found.items() if name == "id"]
        assert len(ids) == len(set(ids))
        for tag, attributes in parsed.tags:
            assert tag not in {"link", "img", "iframe", "object", "base", "form"}
            for name, value in attributes.items():
                assert name not in {"src", "srcset", "action"}
                assert not name.startswith("on")
                for target in re.findall(r"url\((.*?)\)", value or ""):
                    assert target.removeprefix("#") in ids
                if name in {"href", "xlink:href"}:
                    assert (value or "").removeprefix("#") in ids
        assert len(parsed.all("script")) == 1

    def test_says_what_the_terminal_says(self, tmp_path: Path) -> None:
        result = converted(tmp_path, many_layers())

        parsed = Parsed(html.render(page(describe_conversion(result), command="convert")))

        assert "Converted, with warnings" in parsed.text
        assert "PASSED: contents and layers equal; model not verified." in parsed.text
        assert "Every entry that was not to change is bit-identical" in parsed.text
        assert "Does the whole model give the same outputs before and after?" in parsed.text
        assert "model.pt" in parsed.text
        assert "layer4.bn" in parsed.text
        assert "Pass the model's own value with --eps." in parsed.text
        assert "left alone: head.norm: BatchNorm1d, inferred from head.fc.weight" in parsed.text
        assert "model = load_frozen(model, 'model.frozen.safetensors')" in parsed.text
        assert "2030-01-02 03:04 UTC" in parsed.text
        rows = parsed.text[parsed.text.index("Channels") :]
        assert re.search(r"1 ?layer0\.bn ?4 ?1e-05 assumed ?2d inferred", rows)

    def test_names_out_of_a_file_stay_text(self, tmp_path: Path) -> None:
        state = small_state() | nested(**{HOSTILE_NAME: batch_norm(4)})
        state[f"{HOSTILE_NAME}.running_var"][0] = 0
        path = save(tmp_path / "<b>a.pt", {"</script><img src=x>": state, "other": state})
        found = inspect_file(path, summarize=True)

        parsed = Parsed(html.render(page(describe_inspection(found))))

        assert len(parsed.all("script")) == 1
        assert not parsed.all("img")
        assert HOSTILE_NAME in parsed.text
        assert "<b>a.pt" in parsed.text

    def test_lets_no_script_run_but_its_own(self, model: Path) -> None:
        text = html.render(page(describe_inspection(inspect_file(model))))

        policy = Parsed(text).all("meta")[-1]["content"] or ""
        assert "default-src 'none'" in policy
        assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)

    def test_can_be_read_without_scripts(self, tmp_path: Path) -> None:
        found = inspect_file(save(tmp_path / "a.pt", many_layers()))

        parsed = Parsed(html.render(page(describe_inspection(found))))

        (layers,) = (item for item in parsed.all("details") if item.get("class") == "layers")
        assert "open" in layers
        (controls,) = (item for item in parsed.all("div") if item.get("class") == "controls")
        assert "hidden" in controls

    def test_draws_variances_and_scales_in_the_colours_of_the_page(self, tmp_path: Path) -> None:
        found = inspect_file(save(tmp_path / "a.pt", many_layers()), summarize=True)

        text = html.render(page(describe_inspection(found)))

        drawings = re.findall(r"<svg.*?</svg>", text, re.S)
        assert len(drawings) == 4
        assert "eps 1e-05" in drawings[0]
        for drawing in drawings:
            assert "<text" in drawing
            assert "var(--muted)" in drawing
            assert not re.search(r"#0000|font-family|DejaVu", drawing)
        assert "<title>5: layer4.bn: variance 0 … " in drawings[0]

    def test_says_how_to_have_charts_where_there_are_none(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_matplotlib(monkeypatch)
        found = inspect_file(model, summarize=True)

        text = html.render(page(describe_inspection(found)))

        assert "<svg" not in text
        assert "pip install 'frozenbn-cli[report]'" in Parsed(text).text

    def test_has_a_section_for_each_file_those_included_that_cannot_be_read(
        self, model: Path, sick: Path
    ) -> None:
        found: list[Any] = [inspect_file(model), inspect_file(sick)]
        found.append(FrozenBNError("cannot be read", where=("gone/missing.pt",)))

        parsed = Parsed(html.render(page(*map(describe_inspection, found))))

        assert [item["href"] for item in parsed.all("a")] == ["#s1", "#s2", "#s3"]
        assert "Sound" in parsed.text
        assert "Unhealthy" in parsed.text
        assert "gone/missing.pt: cannot be read" in parsed.text

    def test_many_layers_take_little_space(self, tmp_path: Path) -> None:
        state = {}
        for index in range(1000):
            weight = {"weight": torch.zeros(8, 1, 1, 1)}
            block = {f"stages.{index}.conv": weight, f"stages.{index}.bn": batch_norm(8)}
            state |= nested(**block)
        found = inspect_file(save(tmp_path / "a.safetensors", state), summarize=True)

        text = html.render(page(describe_inspection(found)))

        assert len(text.encode()) < 250_000
        assert "each bar stands for 4 neighbours" in text

    def test_shows_by_how_much_files_differ(self, tmp_path: Path) -> None:
        differences = tuple(difference(f"entry{number}", number) for number in range(1, 150))
        claim = Claim("contents", "different", "differs", 150, differences, "begins at <x>")
        result = replace(converted(tmp_path, small_state()), claims=(claim,), outcome="different")

        parsed = Parsed(html.render(page(describe_conversion(result), command="convert")))

        assert "Not converted: verification failed" in parsed.text
        assert "How contents differ" in parsed.text
        assert "begins at <x>." in parsed.text
        assert "Would pass with --atol 149" in parsed.text
        assert "How large each difference is" in parsed.text
        assert "entry149" in parsed.text
        assert "Shown are the 100 largest; a report in JSON has the other 49." in parsed.text


def difference(place: str, size: float) -> Difference:
    measure = Measure(
        elements=9, differing=4, absolute=size, index=(0, 2), before=1.0, after=1.0 + size,
        relative=size, relative_index=(0, 2), ulps=3, mean=size / 10, percentile_99=size / 2,
    )  # fmt: skip
    return Difference(place, "", measure)


def row(number: int, *values: float, eps: float = 1e-5) -> LayerRow:
    spread = Spread(*values)
    layer = BatchNorm(f"bn{number}", {}, 4, Eps(eps, "read"))
    plan = LayerPlan(layer, "freeze", None, (), selected=True)
    summary = Summary(spread, spread)
    return LayerRow(
        number=number, plan=plan, state="", tone="plain", prominent=True, summary=summary
    )


class TestCharts:
    @pytest.mark.parametrize(
        "values",
        [
            (0, 0, 0, 0, 1),
            (1e-45, 1e-45, 1e-45, 1e-45, 1e-45),
            (5e-324, 1, 1e100, 1e200, 1.7e308),
            (1, 1, math.inf, math.inf, math.inf),
            (1, 1, 1, 1, 1),
        ],
    )
    @pytest.mark.parametrize("eps", [0.0, 1e-5, 1e300])
    def test_draw_any_numbers(self, values: tuple[float, ...], eps: float) -> None:
        rows = [row(1, *values, eps=eps), row(2, 0.1, 0.2, 0.3, 0.4, 0.5, eps=eps)]

        for chart in (variance_chart("a", rows), scale_chart("b", rows)):
            assert chart is not None
            assert not re.search(r"\bnan\b|\binf\b", re.sub("<title>.*?</title>", "", chart.wide))

    def test_mark_what_lies_beyond_the_axis(self) -> None:
        chart = scale_chart("a", [row(1, 0, 1, 2, 3, math.inf), row(2, 1, 1, 1, 1, 1)])

        assert chart is not None
        assert chart.notes == ("▾ goes on below 1e-01, maybe to 0", "▴ infinite")

    def test_leave_a_gap_for_a_layer_without_numbers(self) -> None:
        chart = variance_chart(
            "a", [replace(row(1, 1, 1, 1, 1, 1), summary=None), row(2, *[1] * 5)]
        )

        assert chart is not None
        assert chart.notes == ("× no numbers that could be drawn: 1 of 2 layers",)

    def test_there_is_none_without_numbers(self) -> None:
        assert variance_chart("a", []) is None
        assert scale_chart("a", [row(1, 0, 0, 0, 0, 0)]) is None

    def test_there_is_none_of_few_differences(self) -> None:
        few = (*(difference("a", 1),) * 5, Difference("c", "missing"))

        assert difference_chart("a", Claim("contents", "different", "", 6, few)) is None

    def test_are_the_same_for_the_same_numbers(self) -> None:
        rows = [row(1, 1, 2, 3, 4, 5)]

        assert variance_chart("a", rows) == variance_chart("a", rows)


def test_the_gravest_differences_are_listed() -> None:
    found = (*(difference(f"e{size}", size) for size in range(5)), Difference("f", "missing"))

    rows, left_out = difference_rows(Claim("contents", "different", "", 6, found), at_most=3)

    assert [row.cells[1] for row in rows] == ["e3", "e4", "f"]
    assert rows[2].cells[2] == "missing"
    assert left_out == "Shown are the 3 largest; a report in JSON has the other 3."


class TestMarkdown:
    def test_of_a_conversion(self, tmp_path: Path) -> None:
        text = markdown.render(
            page(
                describe_conversion(converted(tmp_path, many_layers(), summarize=True)),
                command="convert",
            )
        )

        assert_golden("report_convert.md", f"{text}\n")

    def test_of_several_files(self, tmp_path: Path) -> None:
        sick = inspected(save(tmp_path / "sick.pt", {**broken(), "x": Hostile()}))
        missing = FrozenBNError("cannot be read", where=("missing.pt",))

        text = markdown.render(page(describe_inspection(sick), describe_inspection(missing)))

        assert_golden("report_inspect.md", f"{text}\n")

    def test_names_out_of_a_file_are_no_markup(self, tmp_path: Path) -> None:
        name = f"a|b`c``{HOSTILE_NAME}\n# *x* @someone ![](https://a.example)"
        state = small_state() | nested(**{name: batch_norm(4)}, fc=batch_norm(9))
        state[f"{name}.running_var"][0] = 0

        text = markdown.render(
            page(describe_inspection(inspect_file(save(tmp_path / "a.pt", state))))
        )

        (line,) = (line for line in text.splitlines() if line.startswith("| 3 |"))
        assert f"```a\\|b`c``{HOSTILE_NAME}\\n# *x* @someone ![](https://a.example)```" in line
        assert len(re.findall(r"(?<!\\)\|", line)) == 9
        for line in text.splitlines():
            outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", line)
            assert "<script" not in outside.replace("\\<", "")
            assert "https://" not in outside
            assert "@someone" not in outside

    def test_differences_are_a_table(self, tmp_path: Path) -> None:
        claim = Claim("layers", "different", "differ", 2, (difference("bn1", 2.5),))
        result = replace(converted(tmp_path, small_state()), claims=(claim,), outcome="different")

        text = markdown.render(page(describe_conversion(result), command="convert"))

        assert "Would pass with --atol 2.5, or with --rtol 2.5." in text
        place = "2.5 at \\[0, 2\\]"
        assert f"| 1 | `bn1` | values | 4 of 9 | {place} | 1 → 3.5 | {place} | 3 |" in text


class TestCommandLine:
    @pytest.mark.parametrize("suffix", ["html", "md", "json"])
    def test_each_command_writes_a_report(
        self, capsys: pytest.CaptureFixture[str], model: Path, suffix: str
    ) -> None:
        out_path = model.with_name("out.safetensors")
        commands = (
            ["inspect", model],
            ["convert", model, "-o", out_path],
            ["verify", model, out_path],
        )
        for command in commands:
            report = model.with_name(f"{command[0]}.{suffix}")

            code, out, err = run_here(capsys, *command, "--report", report)

            assert (code, err) == (0, "")
            assert out.endswith(f"\n\nreport: {report}\n")
            assert "bn1" in report.read_text(encoding="utf-8")
        assert not list(model.parent.glob("*.partial"))

    def test_json_is_what_is_printed(self, capsys: pytest.CaptureFixture[str], sick: Path) -> None:
        report = sick.with_name("report.json")

        code, out, _ = run_here(capsys, "convert", sick, "--json", "--report", report)

        assert code == 1
        assert json.loads(out) == json.loads(report.read_text(encoding="utf-8"))
        assert json.loads(out)["error"]["kind"] == "UnhealthyStatisticsError"

    def test_is_written_where_the_answer_is_no(
        self, capsys: pytest.CaptureFixture[str], model: Path, sick: Path
    ) -> None:
        report = sick.with_name("report.md")
        for command in (["convert", sick], ["inspect", sick, "--check"], ["verify", sick, model]):
            code, _, _ = run_here(capsys, *command, "--report", report, "--force")

            text = report.read_text(encoding="utf-8")
            assert code == 1
            assert f"# frozenbn {command[0]}\n" in text
            assert "❌" in text

    def test_is_written_where_nothing_else_is(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        report = model.with_name("report.md")

        code, _, _ = run_here(capsys, "convert", model, "--dry-run", "--quiet", "--report", report)

        assert code == 0
        assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt", "report.md"]
        assert "would be frozen" in report.read_text(encoding="utf-8")

    @pytest.mark.parametrize("command", ["inspect", "convert", "verify"])
    @pytest.mark.parametrize("name", ["report.pdf", "report", ".html"])
    def test_an_unknown_suffix_is_wrong_usage_before_any_work(
        self, capsys: pytest.CaptureFixture[str], model: Path, command: str, name: str
    ) -> None:
        files = [model, model] if command == "verify" else [model]

        code, out, err = run_here(capsys, command, *files, "--report", model.with_name(name))

        assert (code, out) == (2, "")
        assert ".html, .json or .md" in err
        assert [path.name for path in model.parent.iterdir()] == ["model.pt"]

    @pytest.mark.parametrize("command", ["inspect", "convert", "verify"])
    def test_an_existing_file_is_replaced_only_by_force(
        self, capsys: pytest.CaptureFixture[str], model: Path, command: str
    ) -> None:
        files = [model, model] if command == "verify" else [model]
        report = model.with_name("report.html")
        report.write_text("old")

        code, out, err = run_here(capsys, command, *files, "--report", report)

        assert (code, out) == (2, "")
        assert err.endswith("exists already. Pass --force to replace it.\n")
        assert report.read_text() == "old"
        assert not model.with_name("model.frozen.safetensors").exists()
        run_here(capsys, command, *files, "--report", report, "--force")
        assert report.read_text(encoding="utf-8").startswith("<!doctype html>")

    def test_a_folder_that_does_not_exist_is_told_before_any_work(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        code, out, err = run_here(
            capsys, "convert", model, "--report", model.parent / "no" / "a.html"
        )

        assert (code, out) == (4, "")
        assert "its folder does not exist" in err
        assert not model.with_name("model.frozen.safetensors").exists()

    @pytest.mark.parametrize("arguments", [[], ["--json"]])
    def test_a_report_that_cannot_be_written_is_told_from_the_answer(
        self,
        capsys: pytest.CaptureFixture[str],
        model: Path,
        sick: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
    ) -> None:
        monkeypatch.setattr(ReportFile, "write", full_disk)
        report = model.with_name("report.html")
        run_here(capsys, "convert", model)

        for command in (["inspect", model], ["convert", sick], ["verify", sick, model]):
            code, out, err = run_here(capsys, *command, "--report", report, *arguments)

            assert code == 4
            assert f"{report}: cannot be written (No space left on device)" in err
            assert json.loads(out) if arguments else "report:" not in out

    def test_the_input_is_never_replaced(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        source = model.rename(model.with_suffix(".json"))

        code, _, err = run_here(capsys, "inspect", source, "--report", source, "--force")

        assert code == 2
        assert "Give the report a name of its own." in err

    def test_the_output_is_no_report(self, capsys: pytest.CaptureFixture[str], model: Path) -> None:
        both = model.with_name("out.md")

        assert run_here(capsys, "convert", model, "-o", both, "--report", both)[0] == 2

    def test_a_shard_is_never_replaced(self, tmp_path: Path) -> None:
        index = tmp_path / "model.safetensors.index.json"
        index.write_text("{}")

        with pytest.raises(UsageError, match="also as input"):
            ReportFile(index, replace=True).check([tmp_path])
        ReportFile(tmp_path / "report.json").check([tmp_path])

    def test_inspection_of_several_files_is_one_report(
        self, capsys: pytest.CaptureFixture[str], model: Path, sick: Path
    ) -> None:
        report = model.with_name("report.html")

        code, _, _ = run_here(capsys, "inspect", model, "missing.pt", sick, "--report", report)

        parsed = Parsed(report.read_text(encoding="utf-8"))
        assert code == 3
        assert len([item for item in parsed.all("section") if "id" in item]) == 3
        assert "missing.pt: there is no such file" in parsed.text

    def test_says_that_charts_are_missing(
        self,
        capsys: pytest.CaptureFixture[str],
        model: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        without_matplotlib(monkeypatch)

        _, out, _ = run_here(capsys, "inspect", model, "--report", model.with_name("a.html"))

        assert out.endswith(
            "a.html (without charts, which need: pip install 'frozenbn-cli[report]')\n"
        )

    def test_help_has_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in ("inspect", "convert", "verify"):
            assert "--report" in run_here(capsys, command, "--help")[1]


def full_disk(self: ReportFile, *_: object) -> None:
    raise OutputError("cannot be written (No space left on device)", where=(str(self.path),))


def test_a_report_is_complete_or_not_there(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: AtomicOutput) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", fail)

    with pytest.raises(OutputError, match="No space left"):
        ReportFile(path, replace=True).write(page(describe_inspection(inspect_file(model))), {})

    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.partial"))


def test_names_that_are_no_unicode_are_escaped(tmp_path: Path, model: Path) -> None:
    found = replace(inspect_file(model), path=Path("a\udcff.pt"))
    for suffix in ("html", "md"):
        path = tmp_path / f"report.{suffix}"
        ReportFile(path).write(page(describe_inspection(found)), {})

        assert "a\\udcff.pt" in path.read_text(encoding="utf-8")


def test_a_report_of_an_inspection_loads_no_torch(model: Path) -> None:
    code = (
        "import sys; from frozenbn_cli import cli; assert cli.run(sys.argv[1:]) == 0;"
        "sys.exit('torch' in sys.modules)"
    )
    report = model.with_name("report.html")
    command = [sys.executable, "-c", code, "inspect", str(model), "--report", str(report)]

    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (run.returncode, run.stderr) == (0, "")
    assert "<svg" in report.read_text(encoding="utf-8")


def test_reports_load_what_they_need_only_when_asked_for(model: Path) -> None:
    code = (
        "import sys; from frozenbn_cli import cli; assert cli.run(sys.argv[1:]) == 0;"
        "sys.exit(any(name in sys.modules for name in ('jinja2', 'matplotlib', 'numpy')))"
    )

    assert (
        subprocess.run([sys.executable, "-c", code, "inspect", model], check=False).returncode == 0
    )


class TestSummaries:
    def test_are_computed_on_request(self, model: Path) -> None:
        state = torch.load(model, weights_only=True)
        (part,) = inspect_file(model, summarize=True).state_dicts
        variance, weight = state["bn2.running_var"], state["bn2.weight"]

        found = part.summaries["bn2"]

        assert found.variance.lowest == variance.min()
        assert found.variance.highest == variance.max()
        assert found.variance.median == pytest.approx(float(variance.quantile(0.5)))
        assert found.variance.lower_quartile == pytest.approx(float(variance.quantile(0.25)))
        scale = weight.abs() / (variance + 1e-5).sqrt()
        assert found.scale.upper_quartile == pytest.approx(float(scale.quantile(0.75)))
        assert not inspect_file(model).state_dicts[0].summaries
        assert convert_file(model, options=ConvertOptions(summarize=True)).summaries.keys() == {
            "bn1",
            "bn2",
        }

    def test_there_is_none_of_a_layer_whose_numbers_make_no_sense(self, tmp_path: Path) -> None:
        state = nested(
            nan=batch_norm(4), negative=batch_norm(4), sound=batch_norm(4), ints=batch_norm(4),
            lengths=batch_norm(4), plain=batch_norm(4), empty=batch_norm(0),
        )  # fmt: skip
        state["nan.weight"][0] = float("nan")
        state["negative.running_var"][0] = -1
        state["ints.running_var"] = torch.ones(4, dtype=torch.int32)
        state["lengths.weight"] = torch.ones(5)
        del state["plain.weight"], state["plain.bias"]

        (part,) = inspect_file(save(tmp_path / "a.pt", state), summarize=True).state_dicts

        assert part.summaries.keys() == {"sound", "plain"}

    def test_scale_without_variance_and_eps_is_infinite(self, tmp_path: Path) -> None:
        state = nested(bn=batch_norm(4))
        state["bn.running_var"][:2] = 0
        options = ConvertOptions(eps=0, dry_run=True, summarize=True)

        found = convert_file(save(tmp_path / "a.pt", state), options=options).summaries["bn"]

        assert found.scale.highest == math.inf
        assert found.scale.median == math.inf or math.isfinite(found.scale.median)


class TestVerifiedLayers:
    """What the report says of each layer is what was found out, and not more."""

    def states(self, before: State, after: State, folder: Path, **options: Any) -> dict[str, str]:
        verify_files = import_quietly("frozenbn_cli.verification.files").verify_files
        first, second = save(folder / "a.pt", before), save(folder / "b.pt", after)
        convert_file(second, folder / "b.safetensors", options=ConvertOptions(force=True))
        result = verify_files(first, folder / "b.safetensors", options=VerifyOptions(**options))
        (part,) = describe_verification(result).parts
        return {row.name: row.state for row in part.layers}

    def test_equal(self, tmp_path: Path) -> None:
        assert self.states(small_state(), small_state(), tmp_path) == {
            "bn1": "identical",
            "bn2": "identical",
        }

    def test_different_and_within_tolerance(self, tmp_path: Path) -> None:
        other = small_state()
        other["bn2.bias"] += 1e-3

        assert self.states(small_state(), other, tmp_path) == {"bn1": "yes", "bn2": "different"}
        assert self.states(small_state(), other, tmp_path, atol=0.1) == {
            "bn1": "identical",
            "bn2": "within tolerance",
        }


def test_the_report_of_a_refusal_says_what_to_do(sick: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        convert_file(sick)

    section = describe_conversion(caught.value.result, caught.value)

    assert (section.verdict.tone, section.verdict.words) == (
        "bad",
        "Not converted: unhealthy statistics",
    )
    assert section.verdict.detail.endswith("or all with --force-unhealthy.")
