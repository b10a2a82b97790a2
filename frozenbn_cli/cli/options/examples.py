"""The foot of each command's help."""

from __future__ import annotations

import typer

__all__ = ["CALIBRATE_EXAMPLES", "CONVERT_EXAMPLES", "INSPECT_EXAMPLES", "VERIFY_EXAMPLES"]

# Typer up to 0.27.0 joins the lines of a paragraph, and sets its paragraphs without space.
_LINE_BREAK = "\n" if tuple(map(int, typer.__version__.split(".")[:2])) >= (0, 28) else "\n\n"


def _examples(*commands: str) -> str:
    """Return the foot of a command's help."""
    return _LINE_BREAK.join(["Examples:", *(f"  {command}" for command in commands)])


INSPECT_EXAMPLES = _examples(
    "frozenbn inspect model.pth",
    "frozenbn inspect last.ckpt --key model_ema --all",
    "frozenbn inspect zoo --recursive --report zoo.html",
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
CALIBRATE_EXAMPLES = _examples(
    "frozenbn calibrate model.pth --model torchvision:resnet50 --data images --image-size 224 "
    "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
    "frozenbn calibrate last.ckpt --key model --model my_model.py:build --data my_data.py:batches",
    "frozenbn calibrate model.pth --model my_model.py:build --data inputs.npz --batch-size 64",
)
VERIFY_EXAMPLES = _examples(
    "frozenbn verify model.pth model.frozen.safetensors",
    "frozenbn verify model.pth model.frozen.pt --model torchvision.models:resnet50",
    "frozenbn verify float32.safetensors float16.safetensors --atol 1e-2 --rtol 1e-2",
)
