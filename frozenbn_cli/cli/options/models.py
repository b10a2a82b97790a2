"""The options that say which model is run to verify a file, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from frozenbn_cli.cli.option_values import (
    check_model_arguments,
    check_shapes,
    finite,
    parse_claims,
    parse_model,
    parse_shapes,
    whole,
)
from frozenbn_cli.live_models.known_models import KnownModel
from frozenbn_cli.live_models.run_options import MOST_RUNS
from frozenbn_cli.live_models.target import ModelTarget

__all__ = [
    "ModelArguments",
    "NoVerify",
    "OptimizerTarget",
    "RunArguments",
    "ToleranceArguments",
    "run_options",
]

_MODEL = "Model"
_VERIFICATION = "Verification"

NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Do not check the written file. Saves the seconds that importing torch takes.",
        rich_help_panel=_VERIFICATION,
    ),
]


OptimizerTarget = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        metavar="TARGET",
        help="With --to checkpoint: what builds the optimizer of the model that it is given, or a "
        "list of several, as the training did: 'package.module:callable' or "
        "'path/file.py:callable'. Only where the file does not prove which of its parameters are "
        "which.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]


@dataclass(frozen=True, slots=True)
class ModelArguments:
    """What builds the model that a file belongs to."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="What builds the model that the file belongs to: 'package.module:callable' or "
            "'path/file.py:callable'; 'torchvision:resnet50' or 'timm:resnet50', with the number "
            "of classes that the file has; or 'auto', for the one of these that its layers are "
            "recognised as. Its code is run. It says each layer's class and eps, and is run "
            "before and after to verify the result.",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None
    model_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An argument of the model, its value in JSON: num_classes=10, pretrained=false, "
            'name="resnet18". Repeatable.',
            show_default=False,
            callback=check_model_arguments,
            rich_help_panel=_MODEL,
        ),
    ] = None

    @property
    def target(self) -> ModelTarget | KnownModel | None:
        """What builds the model.

        Raises:
            UsageError: There are arguments, and no model.
        """
        return parse_model(self.model, self.model_arg)


@dataclass(frozen=True, slots=True)
class RunArguments:
    """What a model is run on, and what has to come of it."""

    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help="The shape of the input that the model is run on to verify it, such as "
            "1x3x224x224. Repeatable, for several inputs. Found from the first convolution if not "
            "given.",
            show_default=False,
            callback=check_shapes,
            rich_help_panel=_VERIFICATION,
        ),
    ] = None
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Inputs to run the model on: tensors in .npz, .safetensors or .pt (a tuple there "
            "is what forward takes by position, a dict by name). Nothing in it is executed.",
            show_default=False,
            rich_help_panel=_VERIFICATION,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(
            parser=whole,
            metavar="NUMBER",
            help="Of the random inputs.",
            rich_help_panel=_VERIFICATION,
        ),
    ] = 0
    runs: Annotated[
        int,
        typer.Option(
            parser=whole,
            metavar="NUMBER",
            help=f"On how many random inputs the model is run, {MOST_RUNS} at most, each with a "
            "seed of its own.",
            rich_help_panel=_VERIFICATION,
        ),
    ] = 1
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            parser=finite,
            metavar="SECONDS",
            help="For how long the code of a file may run; it has a process of its own.",
            rich_help_panel=_VERIFICATION,
        ),
    ] = 300.0
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Execute code that is in the file: unpickle a whole module with its classes, or "
            "run a TorchScript archive that can read or write files. Such code can do all that "
            "you can do; only for files whose origin you trust.",
            rich_help_panel=_VERIFICATION,
        ),
    ] = False
    require: Annotated[
        str | None,
        typer.Option(
            metavar="CLAIMS",
            help="The claims that have to be found equal: 'contents', 'layers' and 'model', with "
            "commas between. Where one is not verified, nothing is written; exit code 1.",
            show_default=False,
            rich_help_panel=_VERIFICATION,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ToleranceArguments:
    """How far values may lie apart."""

    atol: Annotated[
        float,
        typer.Option(
            "--atol",
            metavar="NUMBER",
            parser=finite,
            help="Let values differ by this much: |after - before| <= atol + rtol * |before|. 0 "
            "asks for the same bits. For another kernel or dtype 1e-6 is usual in float32, 1e-2 "
            "in float16, 1e-1 in bfloat16, 1e-12 in float64.",
            rich_help_panel=_VERIFICATION,
        ),
    ] = 0.0
    rtol: Annotated[
        float,
        typer.Option(
            "--rtol",
            metavar="NUMBER",
            parser=finite,
            help="Let values differ by this part of the original. For another kernel or dtype 1e-5 "
            "is usual in float32, 1e-2 in float16, 5e-2 in bfloat16, 1e-9 in float64.",
            rich_help_panel=_VERIFICATION,
        ),
    ] = 0.0


def run_options(model: ModelArguments, run: RunArguments) -> dict[str, Any]:
    """Return what commands that verify have in common, as the library names it."""
    return {
        "model": model.target,
        "input_shapes": parse_shapes(run.input_shape),
        "inputs": run.inputs,
        "seed": run.seed,
        "runs": run.runs,
        "timeout": run.timeout,
        "require": parse_claims(run.require),
        "trust": run.trust,
    }
