"""The options of the command line, each defined once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from frozenbn_cli.cli.option_values import (
    check_dims,
    check_finite,
    check_model_arguments,
    check_shapes,
)
from frozenbn_cli.live_models.run_options import MOST_RUNS

__all__ = [
    "CONVERT_EXAMPLES",
    "INSPECT_EXAMPLES",
    "VERIFY_EXAMPLES",
    "AbsoluteTolerance",
    "AddPrefix",
    "AllLayers",
    "AsJson",
    "Check",
    "Checkpoints",
    "Converted",
    "DimsOf",
    "DryRun",
    "Eps",
    "Exclude",
    "Force",
    "ForceReport",
    "ForceUnhealthy",
    "Format",
    "Frozen",
    "Include",
    "InputShape",
    "Inputs",
    "Jobs",
    "KeepPrefix",
    "Key",
    "Live",
    "Model",
    "ModelArg",
    "NoVerify",
    "Original",
    "OutputDir",
    "OutputPath",
    "Quiet",
    "Recursive",
    "RelativeTolerance",
    "Report",
    "Runs",
    "Scheduler",
    "Seed",
    "SkipExisting",
    "StripPrefix",
    "To",
    "Trust",
]


# Typer up to 0.27.0 joins the lines of a paragraph, and sets its paragraphs without space.
_LINE_BREAK = "\n" if tuple(map(int, typer.__version__.split(".")[:2])) >= (0, 28) else "\n\n"


def _examples(*commands: str) -> str:
    """Return the foot of a command's help."""
    return _LINE_BREAK.join(["Examples:", *(f"  {command}" for command in commands)])


INSPECT_EXAMPLES = _examples(
    "frozenbn inspect model.pth",
    "frozenbn inspect last.ckpt --key model_ema --all",
    "frozenbn inspect *.pth --json --check",
)
CONVERT_EXAMPLES = _examples(
    "frozenbn convert model.pth",
    "frozenbn convert model.pth --eps 1e-3 -o frozen.safetensors",
    "frozenbn convert model.pth --model auto",
    "frozenbn convert model.pth --model my_model.py:build --to torchscript",
    "frozenbn convert scripted.pt --input-shape 1x3x224x224",
    "frozenbn convert model.pth --include 'backbone.*' --dry-run",
)
VERIFY_EXAMPLES = _examples(
    "frozenbn verify model.pth model.frozen.safetensors",
    "frozenbn verify model.pth model.frozen.pt --model torchvision.models:resnet50",
    "frozenbn verify float32.safetensors float16.safetensors --atol 1e-2 --rtol 1e-2",
)

_INPUT, _OUTPUT, _LAYERS, _REPORT = "Input", "Output", "Layers", "Report"
_VERIFICATION, _MODEL, _MANY = "Verification", "Model", "Many files"
_READ = "A model file: .pt, .pth, .ckpt, .bin, .safetensors, or a folder of shards."

Checkpoints = Annotated[
    list[Path], typer.Argument(help=_READ, metavar="CHECKPOINT", show_default=False)
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which state dict of a file that holds several, such as 'model_ema'.",
        show_default=False,
        rich_help_panel=_INPUT,
    ),
]
KeepPrefix = Annotated[
    bool,
    typer.Option(
        "--keep-prefix",
        help="Keep what wrappers put into names: 'module.', '_orig_mod.'.",
        rich_help_panel=_INPUT,
    ),
]
StripPrefix = Annotated[
    str,
    typer.Option(
        metavar="PREFIX",
        help="Take this off the names that begin with it, such as 'model.backbone.'.",
        show_default=False,
        rich_help_panel=_INPUT,
    ),
]
AddPrefix = Annotated[
    str,
    typer.Option(
        metavar="PREFIX",
        help="Put this in front of every name, such as 'backbone.'.",
        show_default=False,
        rich_help_panel=_INPUT,
    ),
]
Eps = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        callback=check_finite,
        help="The eps of the model's BatchNorm layers, where the file does not hold it. "
        "If not given, it is recognised from the layers where they are a known architecture's, and "
        "PyTorch's default, 1e-5, is assumed elsewhere.",
        show_default=False,
        rich_help_panel=_LAYERS,
    ),
]
NoRecognise = Annotated[
    bool,
    typer.Option(
        "--no-recognise",
        help="Go by the file alone. If not given, layers that are exactly those of a torchvision "
        "or timm architecture have the eps that they have there.",
        rich_help_panel=_LAYERS,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Freeze only layers whose name matches this pattern, such as 'backbone.*', or that "
        "lie in the module of this name; to name a layer says that it is a BatchNorm2d, where the "
        "file does not. Repeatable.",
        show_default=False,
        rich_help_panel=_LAYERS,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave layers alone whose name matches this pattern, or that lie in the module of "
        "this name. Repeatable.",
        show_default=False,
        rich_help_panel=_LAYERS,
    ),
]
DimsOf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=DIMS",
        help="Say that a layer is a BatchNorm1d, 2d or 3d where the file does not prove it: "
        "'neck.bn=1d'. Repeatable.",
        show_default=False,
        callback=check_dims,
        rich_help_panel=_LAYERS,
    ),
]
Live = Annotated[
    bool,
    typer.Option(
        "--live",
        help="Say that the layers are live of which the file cannot tell it (PyTorch 0.4.0's).",
        rich_help_panel=_LAYERS,
    ),
]
Frozen = Annotated[
    bool,
    typer.Option(
        "--frozen",
        help="Say that the layers are frozen already of which the file cannot tell it.",
        rich_help_panel=_LAYERS,
    ),
]
ForceUnhealthy = Annotated[
    bool,
    typer.Option(
        "--force-unhealthy",
        help="Freeze also statistics that are broken or were never formed.",
        rich_help_panel=_LAYERS,
    ),
]
OutputPath = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The result; beside the input as NAME.frozen.safetensors or NAME.frozen.pt if not "
        "given.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]


class Format(str, Enum):
    """The output formats, as Typer wants choices."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    TORCHSCRIPT = "torchscript"


OutputDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Convert several files, folders and patterns such as 'zoo/**/*.pth', and write the "
        "results here, in folders as the inputs lie in.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
Recursive = Annotated[
    bool,
    typer.Option(
        "--recursive", "-r", help="Look into the folders in a folder too.", rich_help_panel=_MANY
    ),
]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="Count an output as done that was made of the same source with the same options.",
        rich_help_panel=_MANY,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        metavar="N",
        help="How many processes convert at once; one for each core, 8 at most, if not given.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Convert on a running Dask cluster, all of whose workers see the files: "
        "'tcp://10.0.0.1:8786'.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
To = Annotated[
    Format | None,
    typer.Option(
        metavar="FORMAT",
        help="The format of the result: 'safetensors', 'torch' (a plain state dict for torch.load) "
        "or 'torchscript'. TorchScript stays TorchScript if not given, all else becomes "
        "safetensors.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace an output, or a report, that exists.", rich_help_panel=_OUTPUT
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show what would be done; write nothing but the report that is asked for.",
        rich_help_panel=_OUTPUT,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Do not check the written file. Saves the seconds that importing torch takes.",
        rich_help_panel=_VERIFICATION,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="TARGET",
        help="What builds the model that the file belongs to: 'package.module:callable' or "
        "'path/file.py:callable'; 'torchvision:resnet50' or 'timm:resnet50', with the number of "
        "classes that the file has; or 'auto', for the one of these that its layers are "
        "recognised as. Its code is run. It says each layer's class and eps, and is run before "
        "and after to verify the result.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
ModelArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An argument of the model, its value in JSON: num_classes=10, pretrained=false, "
        'name="resnet18". Repeatable.',
        show_default=False,
        callback=check_model_arguments,
        rich_help_panel=_MODEL,
    ),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE",
        help="The shape of the input that the model is run on to verify it, such as 1x3x224x224. "
        "Repeatable, for several inputs. Found from the first convolution if not given.",
        show_default=False,
        callback=check_shapes,
        rich_help_panel=_VERIFICATION,
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Inputs to run the model on: tensors in .npz, .safetensors or .pt (a tuple there is "
        "what forward takes by position, a dict by name). Nothing in it is executed.",
        show_default=False,
        rich_help_panel=_VERIFICATION,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, metavar="NUMBER", help="Of the random inputs.", rich_help_panel=_VERIFICATION
    ),
]
Runs = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="NUMBER",
        max=MOST_RUNS,
        help="On how many random inputs the model is run, each with a seed of its own.",
        rich_help_panel=_VERIFICATION,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Execute code that is in the file: unpickle a whole module with its classes, or run a "
        "TorchScript archive that can read or write files. Such code can do all that you can do; "
        "only for files whose origin you trust.",
        rich_help_panel=_VERIFICATION,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="For how long the code of a file may run; it has a process of its own.",
        rich_help_panel=_VERIFICATION,
    ),
]
AbsoluteTolerance = Annotated[
    float,
    typer.Option(
        "--atol",
        metavar="NUMBER",
        callback=check_finite,
        help="Let values differ by this much: |after - before| <= atol + rtol * |before|. 0 asks "
        "for the same bits. For another kernel or dtype 1e-6 is usual in float32, 1e-2 in float16, "
        "1e-1 in bfloat16, 1e-12 in float64.",
        rich_help_panel=_VERIFICATION,
    ),
]
RelativeTolerance = Annotated[
    float,
    typer.Option(
        "--rtol",
        metavar="NUMBER",
        callback=check_finite,
        help="Let values differ by this part of the original. For another kernel or dtype 1e-5 is "
        "usual in float32, 1e-2 in float16, 5e-2 in bfloat16, 1e-9 in float64.",
        rich_help_panel=_VERIFICATION,
    ),
]
Original = Annotated[
    Path, typer.Argument(help=f"Before. {_READ}", metavar="ORIGINAL", show_default=False)
]
Converted = Annotated[
    Path, typer.Argument(help="After, of any kind.", metavar="CONVERTED", show_default=False)
]
AllLayers = Annotated[
    bool, typer.Option("--all", help="Show every layer, or file.", rich_help_panel=_REPORT)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_REPORT)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_REPORT),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write a report, also where the answer is no: one .html file with charts and all "
        "layers, .md for GitHub, or .json, which is what --json prints.",
        show_default=False,
        rich_help_panel=_REPORT,
    ),
]
ForceReport = Annotated[
    bool,
    typer.Option("--force", help="Replace a report that exists.", rich_help_panel=_REPORT),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Exit with 1 if statistics are broken or were never formed, or if loading the file "
        "without care would call what no model needs.",
        rich_help_panel=_REPORT,
    ),
]
