"""Many files: each becomes what it would alone, and none harms another."""

import hashlib
import json
import pickle
from concurrent.futures import Executor, Future
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

import frozenbn_cli.many_files.batch
from frozenbn_cli import ConvertOptions, FileResult, Selection, convert_file, convert_files
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import OutputError, UsageError
from frozenbn_cli.live_models.target import ModelTarget, identity_of_model
from frozenbn_cli.many_files.batch import convert_one
from frozenbn_cli.many_files.file_results import exit_code_of
from tests.builders.files import batch_norm, nested, save, small_state

DATE = datetime(2030, 1, 2, tzinfo=timezone.utc)
FAST = ConvertOptions(verify=False, date=DATE)


class Here(Executor):
    """Does work in this process at once; what goes in and out is pickled, as in any other."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(fn(*pickle.loads(pickle.dumps(args))))))
        except Exception as error:
            future.set_exception(error)
        return future


def convert_here(*paths: Path, output_dir: Path, **arguments: Any) -> list[FileResult]:
    arguments = {"options": FAST, "executor": Here()} | arguments
    return convert_files(paths, output_dir=output_dir, **arguments)


def states(results: list[FileResult]) -> dict[str, str]:
    return {result.path.name: result.state for result in results}


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Return a folder of two good files, one that is damaged, and one of broken statistics."""
    folder = tmp_path / "zoo"
    (folder / "deep").mkdir(parents=True)
    save(folder / "good.pt", small_state())
    save(
        folder / "deep" / "good.pt",
        nested(conv={"weight": torch.ones(3, 3, 1, 1)}, bn=batch_norm(3)),
    )
    (folder / "damaged.pt").write_bytes((folder / "good.pt").read_bytes()[:-20])
    sick = small_state()
    sick["bn1.running_var"][0] = -1
    save(folder / "sick.pt", sick)
    return folder


def test_failing_inputs_harm_no_good_ones(zoo: Path, tmp_path: Path) -> None:
    results = convert_here(zoo, output_dir=tmp_path / "out", recursive=True)

    damaged, deep, good, sick = results
    assert [result.state for result in results] == ["failed", "done", "done", "failed"]
    assert [result.exit_code for result in results] == [3, 0, 0, 1]
    assert exit_code_of(results) == 3
    assert str(damaged.error).startswith(f"{zoo}/damaged.pt: ")
    assert sick.summary
    assert (sick.summary.outcome, sick.summary.findings["error"]) == ("unhealthy", 1)
    assert deep.output == tmp_path / "out" / "deep" / "good.frozen.safetensors"
    assert good.summary
    assert (good.summary.layers, good.summary.frozen) == (2, 2)
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        deep.output, good.output,
    ]  # fmt: skip


def test_each_output_is_what_a_single_conversion_writes(zoo: Path, tmp_path: Path) -> None:
    alone = convert_file(zoo / "good.pt", tmp_path / "alone", options=FAST).output_path

    convert_files([zoo / "good.pt"], output_dir=tmp_path / "out", options=FAST)

    assert (tmp_path / "out" / "good.frozen.safetensors").read_bytes() == alone.read_bytes()


def test_processes_of_its_own_convert_and_verify(zoo: Path, tmp_path: Path) -> None:
    told: list[tuple[str, str, int]] = []

    results = convert_files(
        [zoo], output_dir=tmp_path / "out", jobs=2,
        progress=lambda result, done, _: told.append((result.path.name, result.state, done)),
    )  # fmt: skip

    assert states(results) == {"damaged.pt": "failed", "good.pt": "done", "sick.pt": "failed"}
    assert results[1].summary
    assert {claim.name: claim.status for claim in results[1].summary.claims} == {
        "contents": "equal", "layers": "equal", "model": "not verified",
    }  # fmt: skip
    assert [state for name, state, _ in told if name == "good.pt"] == ["waiting", "running", "done"]
    assert told[-1][2] == 3


def test_results_are_small_and_whole_after_a_journey(zoo: Path, tmp_path: Path) -> None:
    good, sick = convert_here(zoo / "good.pt", zoo / "sick.pt", output_dir=tmp_path / "out")

    assert len(pickle.dumps(good)) < 3000
    assert str(sick.error).startswith(f"{zoo}/sick.pt: broken or never formed statistics in 1 of 2")
    assert "force_unhealthy=True" in str(sick.error)


def test_a_bug_concerns_its_file_alone(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(path: Path, **arguments: Any) -> Any:
        if path.name == "sick.pt":
            raise ZeroDivisionError("oops")
        return convert_file(path, **arguments)

    monkeypatch.setattr(frozenbn_cli.many_files.batch, "convert_file", convert)

    results = convert_here(zoo, output_dir=tmp_path / "out")

    assert states(results) == {"damaged.pt": "failed", "good.pt": "done", "sick.pt": "failed"}
    assert results[2].exit_code == 70
    assert "sick.pt: internal error (ZeroDivisionError: oops)" in str(results[2].error)
    assert "in convert" in results[2].traceback


class TestExecutors:
    def test_a_worker_that_fails_fails_its_file(self, zoo: Path, tmp_path: Path) -> None:
        class Broken(Here):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
                if args[0].file.path.name == "sick.pt":
                    raise RuntimeError("no worker left")
                return super().submit(fn, *args, **kwargs)

        results = convert_here(zoo, output_dir=tmp_path / "out", executor=Broken())

        assert states(results)["good.pt"] == "done"
        assert str(results[2].error) == (
            f"{zoo}/sick.pt: its worker failed (RuntimeError: no worker left)"
        )
        assert results[2].exit_code == OutputError.exit_code

    def test_paths_reach_workers_in_other_folders(
        self, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []

        class Elsewhere(Here):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
                seen.append(args[0])
                with pytest.MonkeyPatch.context() as patch:
                    patch.chdir("/")
                    return super().submit(fn, *args, **kwargs)

        monkeypatch.chdir(tmp_path)
        (tmp_path / "model.py").write_text("build = None")
        options = replace(FAST, inputs=Path("x.npz"), model=ModelTarget("model.py:build"))

        (good,) = convert_here(Path("zoo/good.pt"), output_dir=Path("out"), executor=Elsewhere())
        convert_here(
            Path("zoo/sick.pt"), output_dir=Path("out"), executor=Elsewhere(), options=options
        )

        assert good.path == Path("zoo/good.pt")
        assert good.output == Path("out/good.frozen.safetensors")
        assert good.output.exists()
        assert seen[1].options.inputs == tmp_path / "x.npz"
        assert seen[1].options.model.target == f"{tmp_path}/model.py:build"

    def test_work_that_is_done_again_finds_its_output(self, zoo: Path, tmp_path: Path) -> None:
        """A worker may be lost after the output got its name, and before it could say so."""

        class Twice(Here):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
                super().submit(fn, *args, **kwargs)
                return super().submit(fn, *args, **kwargs)

        (result,) = convert_here(zoo / "good.pt", output_dir=tmp_path / "out", executor=Twice())

        assert (result.state, result.error) == ("done", None)

    def test_what_killed_workers_left_is_removed_and_nothing_else(
        self, zoo: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"

        class Killed(Here):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
                (out / f".good.frozen.safetensors.{args[0].mark}-0a.partial").touch()
                (out / ".other.frozen.safetensors.0a0a0a0a.partial").touch()
                return super().submit(fn, *args, **kwargs)

        convert_here(zoo / "good.pt", output_dir=out, executor=Killed())

        assert sorted(path.name for path in out.iterdir()) == [
            ".other.frozen.safetensors.0a0a0a0a.partial", "good.frozen.safetensors",
        ]  # fmt: skip

    def test_jobs_are_for_processes_of_its_own(self, zoo: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="workers of its own"):
            convert_here(zoo, output_dir=tmp_path / "out", jobs=2)
        with pytest.raises(UsageError, match="jobs 0: expected 1 or more"):
            convert_here(zoo, output_dir=tmp_path / "out", jobs=0, executor=None)


class TestBeforeTheWork:
    def test_a_collision_is_refused(self, zoo: Path, tmp_path: Path) -> None:
        save(zoo / "good.pth", small_state())

        with pytest.raises(UsageError, match="is the output of"):
            convert_here(zoo, output_dir=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_cannot_be_made_is_told(self, zoo: Path, tmp_path: Path) -> None:
        (tmp_path / "out").touch()

        with pytest.raises(OutputError, match=r"out: cannot be made"):
            convert_here(zoo, output_dir=tmp_path / "out")

    def test_a_dry_run_writes_nothing(self, zoo: Path, tmp_path: Path) -> None:
        results = convert_here(
            zoo, output_dir=tmp_path / "out", recursive=True, options=replace(FAST, dry_run=True)
        )

        assert [r.summary.outcome for r in results if r.state == "done" and r.summary] == [
            "planned", "planned",
        ]  # fmt: skip
        assert not (tmp_path / "out").exists()


class TestSkippingExisting:
    @pytest.fixture
    def good(self, zoo: Path, tmp_path: Path) -> Path:
        convert_here(zoo / "good.pt", output_dir=tmp_path / "out")
        return zoo / "good.pt"

    def again(self, good: Path, options: ConvertOptions = FAST) -> FileResult:
        out = good.parent.parent / "out"
        (result,) = convert_here(good, output_dir=out, options=options, skip_existing=True)
        return result

    def test_counts_what_was_made_of_the_same_source_with_the_same_options(
        self, good: Path
    ) -> None:
        output = good.parent.parent / "out" / "good.frozen.safetensors"
        before = output.stat().st_ino

        result = self.again(good)

        assert (result.state, result.output, result.exit_code) == ("skipped", output, 0)
        assert output.stat().st_ino == before

    def test_makes_what_is_not_there(self, zoo: Path, tmp_path: Path, good: Path) -> None:
        results = convert_here(zoo, output_dir=tmp_path / "out", recursive=True, skip_existing=True)

        assert [result.state for result in results] == ["failed", "done", "skipped", "failed"]

    def test_without_it_what_exists_is_an_error(self, good: Path, tmp_path: Path) -> None:
        (result,) = convert_here(good, output_dir=tmp_path / "out")

        assert result.exit_code == 2
        assert "exists already. Pass force=True" in str(result.error)

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"keep_prefix": True}, "keep_prefix"),
            ({"eps": 1e-3}, "eps"),
            ({"selection": Selection.of(include="bn1")}, "include"),
            ({"selection": Selection.of(exclude="bn1")}, "exclude"),
            ({"force_unhealthy": True}, "force_unhealthy"),
            ({"model": ModelTarget("torchvision.models:resnet18")}, "model"),
            ({"key": "model"}, "key"),
            ({"dims": (1, 2, 3)}, "dims"),
        ],
    )
    def test_other_options_do_not_count(
        self, good: Path, change: dict[str, Any], name: str
    ) -> None:
        result = self.again(good, replace(FAST, **change))

        assert result.exit_code == 2
        assert f"does not count: it was made with another {name}. Pass force=True" in str(
            result.error
        )

    @pytest.mark.parametrize("change", [{"dims": (1, 2, 3)}, {"add_prefix": "net."}])
    def test_options_that_are_no_longer_given_do_not_count(
        self, good: Path, change: dict[str, Any]
    ) -> None:
        assert self.again(good, replace(FAST, **change, force=True)).state == "done"

        said = f"does not count: it was made with another {next(iter(change))}."
        assert said in str(self.again(good).error)

    def test_what_decides_nothing_is_no_other_option(self, good: Path) -> None:
        same = replace(FAST, seed=5, runs=2, to="safetensors", trust=True)

        assert self.again(good, same).state == "skipped"

    def test_another_source_does_not_count(self, good: Path) -> None:
        state = small_state()
        state["bn1.weight"] += 1
        save(good, state)

        assert "it was made of another source" in str(self.again(good).error)

        save(good, small_state() | {"more": torch.ones(2)})
        assert "it was made of another source" in str(self.again(good).error)

    def test_force_replaces_what_does_not_count(self, good: Path) -> None:
        result = self.again(good, replace(FAST, eps=1e-3, force=True))

        assert (result.state, result.exit_code) == ("done", 0)
        assert self.again(good, replace(FAST, eps=1e-3)).state == "skipped"

    def test_what_was_not_verified_does_not_count_where_that_is_wanted(self, good: Path) -> None:
        assert "it was not verified" in str(self.again(good, ConvertOptions()).error)
        assert self.again(good, ConvertOptions(force=True)).state == "done"
        assert self.again(good, ConvertOptions()).state == "skipped"
        assert self.again(good).state == "skipped"

    def test_a_damaged_or_strange_output_does_not_count(self, good: Path, tmp_path: Path) -> None:
        output = tmp_path / "out" / "good.frozen.safetensors"
        whole = output.read_bytes()
        output.write_bytes(whole[:-1])
        assert "it is no file that frozenbn wrote" in str(self.again(good).error)

        output.unlink()
        save(output, small_state())
        assert "it is no file that frozenbn wrote" in str(self.again(good).error)

    def test_a_record_of_an_older_version_does_not_count(self, good: Path, tmp_path: Path) -> None:
        output = tmp_path / "out" / "good.frozen.safetensors"
        content = output.read_bytes()
        # Of the same length, so that the file stays sound.
        output.write_bytes(content.replace(b'\\"options\\"', b'\\"optionz\\"'))

        assert "does not say with which options" in str(self.again(good).error)

    @pytest.mark.parametrize("to", ["torch", "safetensors"])
    def test_holds_for_every_format(self, zoo: Path, tmp_path: Path, to: Any) -> None:
        options = replace(FAST, to=to)

        runs = [
            convert_here(
                zoo / "good.pt", output_dir=tmp_path / "out", skip_existing=True, options=options
            )[0].state
            for _ in range(2)
        ]

        assert runs == ["done", "skipped"]


def test_the_options_stand_in_the_record(zoo: Path, tmp_path: Path) -> None:
    output = convert_here(
        zoo / "good.pt", output_dir=tmp_path,
        options=replace(FAST, eps=1e-3, selection=Selection.of(["bn2", "bn1", "bn1"])),
    )[0].output  # fmt: skip

    assert output
    with open_checkpoint(output) as written:
        record = ConversionRecord.from_metadata(written.metadata)
        assert record
        assert record == ConversionRecord.from_metadata({"frozenbn.conversion": record.to_text()})
    assert record.options == {
        "to": "safetensors", "key": None, "keep_prefix": False, "eps": 1e-3,
        "include": ["bn1", "bn2"], "exclude": [], "recognise": True,
        "force_unhealthy": False, "model": None,
    }  # fmt: skip


class TestIdentityOfModels:
    def test_tells_arguments_and_code_apart_and_names_no_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "model.py"
        path.write_text("build = 1")
        first = identity_of_model(ModelTarget(f"{path}:build"))
        other = identity_of_model(ModelTarget(f"{path}:build", {"a": 1}))
        path.rename(tmp_path / "moved.py")
        moved = identity_of_model(ModelTarget(f"{tmp_path}/moved.py:build"))
        path.write_text("build = 2")
        changed = identity_of_model(ModelTarget(f"{path}:build"))

        assert first
        assert first.startswith("model.py:build ")
        assert len({first, other, changed}) == 3
        assert moved == first.replace("model.py", "moved.py")

    def test_of_callables_and_of_none(self) -> None:
        assert identity_of_model(None) is None
        assert identity_of_model(json.dumps) == "json.dumps"
        assert identity_of_model(ModelTarget("a.b:c")) == (
            f"a.b:c {hashlib.sha256(b'{}').hexdigest()[:16]}"
        )


def test_the_mark_does_not_outlive_the_work(zoo: Path, tmp_path: Path) -> None:
    from frozenbn_cli.containers.atomic_output import AtomicOutput, marked, remove_marked

    with marked("0a"):
        inside = AtomicOutput(tmp_path / "a").path
    outside = AtomicOutput(tmp_path / "a").path
    inside.touch()
    outside.touch()
    remove_marked(tmp_path, "0a")

    assert ".0a-" in inside.name
    assert not inside.exists()
    assert outside.exists()


def job_of(path: Path) -> frozenbn_cli.many_files.batch.Job:
    return frozenbn_cli.many_files.batch.Job(
        file=frozenbn_cli.many_files.batch.ModelFile(path, path.parent / "out"),
        options=ConvertOptions(verify=False), skip_existing=True, was_there=False, mark="0",
    )  # fmt: skip


def test_convert_one_never_raises(tmp_path: Path) -> None:
    assert convert_one(job_of(tmp_path / "missing.pt")).exit_code == 3


def test_a_worker_of_another_version_converts_nothing(zoo: Path) -> None:
    job = job_of(zoo / "good.pt")

    refused = convert_one(replace(job, version="0.0.9"))

    assert str(refused.error) == (
        f"{job.file.path}: the worker's frozenbn: expected version 0.0.9, found "
        f"{frozenbn_cli.__version__}. Install the same version for all workers."
    )
    assert refused.exit_code == 4
    assert not job.file.output_dir.exists()
    assert convert_one(job).state == "done"


def test_a_report_gets_whole_results_that_hold_no_file(zoo: Path, tmp_path: Path) -> None:
    options = replace(FAST, summarize=True)

    results = convert_here(zoo, output_dir=tmp_path / "out", options=options)

    whole = {result.path.name: result.conversion for result in results if result.conversion}
    assert {name: found.outcome for name, found in whole.items()} == {
        result.path.name: result.summary.outcome for result in results if result.summary
    }
    for found in whole.values():
        assert found.plan.layers
        assert not any(item.layer.tensors for item in found.plan.layers)
    again = convert_here(zoo, output_dir=tmp_path / "out2")
    assert not any(result.conversion for result in again)
