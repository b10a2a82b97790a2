"""Train with BatchNorm, freeze, fine-tune: the recipe on real data, and what it brings.

    python samples/three_stages.py                  # about three minutes; draws three_stages.png
    python samples/three_stages.py --quick          # with fewer seeds, about a minute
    torchrun --nproc-per-node 2 samples/three_stages.py --ddp

It needs scikit-learn, and matplotlib for the figure: pip install '.[samples]'
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from rich.text import Text

from frozenbn_cli import survey_batch_norms
from frozenbn_cli.reports.console import make_console, print_report
from frozenbn_cli.wording import counted

try:
    from across_ranks import fine_tune_on_ranks
    from backbone import Backbone
    from fine_tuning import Measurements, Norm, Settings, measure, rotated_and_noisy, shifted
    from freezing import frozen_by_command_line, frozen_by_library, same_bits
    from going_on import going_on
    from make_samples import BATCH_SIZE, SAMPLE_PATH, Digits, accuracy, read_digits, train
    from tables import (
        comparison,
        going_on_table,
        in_percent,
        outcome_table,
        ranks_table,
        trial_table,
    )
    from when_not_to_freeze import (
        CALIBRATE,
        another_contrast,
        from_scratch,
        never_formed,
        too_different,
    )
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}; the recipe needs scikit-learn: pip install '.[samples]'")

_FIGURE = Path("three_stages.png")
_FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
_SEEDS, _QUICK_SEEDS = 5, 3
_SMALL_RUN_SEEDS, _QUICK_SMALL_RUN_SEEDS = 3, 1
_INSTALL_MATPLOTLIB = "the figure needs matplotlib: pip install '.[samples]'"


def main() -> None:
    options = _options()
    # The layers are too small to share; with one thread, sums are taken in the same order.
    torch.set_num_threads(1)
    digits = read_digits()
    if options.ddp:
        _on_several_processes(options, digits)
    else:
        _in_one_process(options, digits)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train with BatchNorm, freeze, fine-tune.")
    add = parser.add_argument
    add("--train", action="store_true", help="train stage 1 instead of reading the sample")
    add(
        "--seeds",
        type=_positive,
        metavar="N",
        help=f"how many seeds (default: {_SEEDS}, or {_QUICK_SEEDS} with --quick)",
    )
    for name, default, what in (
        ("--images", Settings().images, "to fine-tune on"),
        ("--epochs", Settings().epochs, "how often each image is seen after stage 1"),
    ):
        add(name, type=_positive, metavar="N", default=default, help=f"{what} (default: {default})")
    add(
        "--learning-rate",
        type=float,
        default=Settings().learning_rate,
        metavar="RATE",
        help="of stage 3, the same for all (default: %(default)s)",
    )
    add("--upper-only", action="store_true", help="keep the weights of stem and stage 1")
    add("--figure", type=_figure_path, metavar="FILE", help=f"default: {_FIGURE}")
    add("--quick", action="store_true", help="fewer seeds: a look, about a minute long")
    add("--ddp", action="store_true", help="on several processes, started by torchrun")
    options = parser.parse_args()
    options.seeds = options.seeds or (_QUICK_SEEDS if options.quick else _SEEDS)
    if options.ddp and options.quick:
        parser.error("--ddp has one seed anyway, so --quick would change nothing")
    if options.ddp and not dist.is_torchelastic_launched():
        parser.error("start it with torchrun --nproc-per-node 2 samples/three_stages.py --ddp")
    if options.figure and find_spec("matplotlib") is None:
        parser.error(_INSTALL_MATPLOTLIB)
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def _figure_path(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _FIGURE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"expected {' or '.join(_FIGURE_SUFFIXES)}, found {text}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        images=options.images,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        upper_only=options.upper_only,
    )


def _trained(options: argparse.Namespace, digits: Digits) -> Backbone:
    if options.train:
        return train(digits)
    model = Backbone()
    model.load_state_dict(torch.load(SAMPLE_PATH, weights_only=True))
    return model.eval()


# One process


def _in_one_process(options: argparse.Namespace, digits: Digits) -> None:
    started = time.monotonic()
    console = make_console(sys.stdout)
    settings = _settings(options)

    trained = _stage_1(console, options, digits)
    _stage_2(console, trained, digits)
    measurements = _stage_3(console, trained, digits, settings, seeds=options.seeds)
    if options.quick:
        _say(
            console,
            "",
            f"A quick look: with {counted(options.seeds, 'seed')}, differences of a few points are "
            "chance. samples/README.md says what more seeds show.",
        )
    _figure(options, measurements)
    _in_the_middle(console, digits, settings, options)
    _when_not_to_freeze(console, trained, digits, settings, options)
    _say(console, f"\n{time.monotonic() - started:.0f} seconds in all.")


def _stage_1(console: Console, options: argparse.Namespace, digits: Digits) -> Backbone:
    _heading(console, "Stage 1: a backbone trained with BatchNorm")
    trained = _trained(options, digits)
    domain = shifted(digits, rotated_and_noisy, images=1, seed=0)
    source = "trained just now" if options.train else f"samples/{SAMPLE_PATH.name}"
    _say(console, f"{source}, {len(survey_batch_norms(trained))} BatchNorm2d layers")
    for name, each in (("test digits", digits), ("of them, turned by 25° and noisy", domain)):
        share = in_percent(accuracy(trained, each.test_images, each.test_labels))
        _say(console, f"right on {share} % of {len(each.test_images)} {name}")
    return trained


def _stage_2(console: Console, trained: Backbone, digits: Digits) -> None:
    _heading(console, "Stage 2: freeze")
    by_library = frozen_by_library(trained).train()
    with tempfile.TemporaryDirectory() as folder:
        by_command_line, report = frozen_by_command_line(trained, Path(folder))
    _say(console, "$ frozenbn convert backbone.pt")
    for line in report.splitlines():
        if line.startswith(("contents ", "layers ", "model ")):
            _say(console, line)
    with torch.no_grad():
        unchanged = torch.equal(by_library(digits.test_images), trained(digits.test_images))
    if not (unchanged and same_bits(by_library, by_command_line)):
        raise RuntimeError("freezing changed the backbone")
    _say(
        console,
        "convert_bn_to_frozen(model) gives the same to the last bit; its logits in train() equal "
        f"those of BatchNorm in eval() on all {len(digits.test_images)} images",
    )


def _stage_3(
    console: Console, trained: Backbone, digits: Digits, settings: Settings, *, seeds: int
) -> Measurements:
    _heading(console, "Stage 3: fine-tune on the turned and noisy digits")
    _say(console, _described(settings, seeds))
    if seeds > 1:
        _say(console, "mean ± standard deviation over the seeds")
    _say(console, "")
    measurements = measure(
        trained,
        digits,
        rotated_and_noisy,
        settings,
        seeds=_tracked(range(seeds), "fine-tuning"),
    )
    print_report(console, outcome_table(measurements))
    for other in (Norm.TRAIN, Norm.EVAL):
        _say(console, "", comparison(measurements, other))
    return measurements


def _described(settings: Settings, seeds: int) -> str:
    part = "upper layers" if settings.upper_only else "all layers"
    return (
        f"{settings.images} images, batches of {settings.batch_size}, {part}, "
        f"{counted(settings.epochs, 'epoch')}, learning rate {settings.learning_rate:g}, "
        f"{counted(seeds, 'seed')}"
    )


def _figure(options: argparse.Namespace, measurements: Measurements) -> None:
    if find_spec("matplotlib") is None:
        print(f"No figure was drawn: {_INSTALL_MATPLOTLIB}", file=sys.stderr)
        return
    from figure import draw

    path = options.figure or _FIGURE
    draw(measurements, path)
    print(f"drawn: {path}", file=sys.stderr)


def _small_run_seeds(options: argparse.Namespace) -> range:
    most = _QUICK_SMALL_RUN_SEEDS if options.quick else _SMALL_RUN_SEEDS
    return range(min(options.seeds, most))


def _in_the_middle(
    console: Console, digits: Digits, settings: Settings, options: argparse.Namespace
) -> None:
    seeds = _small_run_seeds(options)
    _heading(console, "Freezing in the middle of a run")
    _say(
        console,
        f"digits, batches of {BATCH_SIZE}, AdamW, {counted(settings.epochs, 'epoch')} before and "
        f"as many after, {counted(len(seeds), 'seed')}",
        "",
    )
    ways = going_on(digits, epochs=settings.epochs, seeds=seeds)
    print_report(console, going_on_table(ways))


def _when_not_to_freeze(
    console: Console,
    trained: Backbone,
    digits: Digits,
    settings: Settings,
    options: argparse.Namespace,
) -> None:
    seeds = _small_run_seeds(options)
    of_seeds = counted(len(seeds), "seed")

    _heading(console, "When not to freeze: training from scratch")
    epochs = counted(settings.epochs, "epoch")
    _say(console, f"digits, batches of {BATCH_SIZE}, {epochs}, {of_seeds}", "")
    print_report(console, trial_table(from_scratch(digits, epochs=settings.epochs, seeds=seeds)))

    _heading(console, "When not to freeze: statistics that were never formed")
    with tempfile.TemporaryDirectory() as folder:
        inspected, refusal, calibrated = never_formed(Path(folder), digits)
    _say(console, "$ frozenbn inspect untrained.pt")
    for line in inspected.splitlines():
        if line.startswith(("error: ", "frozenbn convert ")):
            _say(console, line)
    _say(console, "$ frozenbn convert untrained.pt", refusal.strip())
    _say(console, f"$ {CALIBRATE}")
    for line in calibrated.splitlines():
        if line.startswith(("calibrated ", "settled", "contents ")):
            _say(console, line)
    _say(console, "$ frozenbn convert untrained.calibrated.pt", "converts")

    _heading(console, "When not to freeze: statistics of another contrast")
    _say(console, f"pale digits, nothing trained, {of_seeds}", "")
    print_report(console, trial_table(another_contrast(trained, digits, seeds=seeds)))

    _heading(console, "When not to freeze: a data set too different")
    _say(
        console,
        f"{settings.images} inverted digits, {epochs}, {of_seeds}",
        "",
    )
    print_report(console, trial_table(too_different(trained, digits, settings, seeds=seeds)))


# Several processes


def _on_several_processes(options: argparse.Namespace, digits: Digits) -> None:
    dist.init_process_group("gloo")
    try:
        _compare_ranks(options, digits)
    finally:
        dist.destroy_process_group()


def _compare_ranks(options: argparse.Namespace, digits: Digits) -> None:
    settings = _settings(options)
    trained = _trained(options, digits)
    domain = shifted(digits, rotated_and_noisy, images=settings.images, seed=0)
    outcomes = [
        fine_tune_on_ranks(
            trained, norm, domain, settings, broadcast_buffers=broadcast_buffers, seed=0
        )
        for norm, broadcast_buffers in (
            (Norm.TRAIN, True),
            (Norm.TRAIN, False),
            (Norm.FROZEN, False),
        )
    ]
    if dist.get_rank() == 0:
        console = make_console(sys.stdout)
        _heading(console, f"Stage 3 on {dist.get_world_size()} processes")
        _say(
            console,
            f"{settings.images} turned and noisy digits in all, batches of "
            f"{settings.batch_size} on each process, {counted(settings.epochs, 'epoch')}",
            "",
        )
        print_report(console, ranks_table(outcomes))
    if outcomes[-1].unequal:
        raise RuntimeError("frozen statistics differ between the processes")


# Printing


def _heading(console: Console, text: str) -> None:
    print_report(console, Text(f"\n{text}", "bold"))


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        print_report(console, line)


def _tracked(values: Iterable[int], description: str) -> Iterable[int]:
    errors = make_console(sys.stderr)
    if not errors.is_terminal:
        return values
    return track(values, description, console=errors, transient=True)


if __name__ == "__main__":
    main()
