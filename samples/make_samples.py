"""Train the sample backbone on scikit-learn's digits and save it.

    python samples/make_samples.py      # about half a minute

It writes samples/digits_backbone.pt, a state dict, and the same model as TorchScript and as an
exported program.

The same machine and version of PyTorch give the same file, byte for byte.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from frozenbn_cli.containers.zip_writer import ZipWriter

if TYPE_CHECKING or not __package__:
    from backbone import Backbone, NormLayer
else:
    from samples.backbone import Backbone, NormLayer

__all__ = [
    "BATCH_SIZE",
    "PROGRAM_PATH",
    "SAMPLE_PATH",
    "SCRIPTED_PATH",
    "Digits",
    "accuracy",
    "batches",
    "read_digits",
    "train",
    "train_epoch",
]

SAMPLE_PATH = Path(__file__).with_name("digits_backbone.pt")
SCRIPTED_PATH = Path(__file__).with_name("digits_backbone.torchscript.pt")
PROGRAM_PATH = Path(__file__).with_name("digits_backbone.pt2")

SEED = 0
EPOCHS = 20
BATCH_SIZE = 64
LEARNING_RATE = 4e-3


@dataclass(frozen=True, slots=True)
class Digits:
    """Images of shape (N, 1, 8, 8) from 0 to 1, and labels of shape (N,) from 0 to 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def read_digits() -> Digits:
    """Return scikit-learn's 1,797 digits, a fifth of them for testing; always the same split."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    return Digits(
        _as_images(train_images),
        torch.as_tensor(train_labels, dtype=torch.int64),
        _as_images(test_images),
        torch.as_tensor(test_labels, dtype=torch.int64),
    )


def _as_images(rows: object) -> Tensor:
    return torch.as_tensor(rows, dtype=torch.float32).view(-1, 1, 8, 8) / 16


def batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled full batches, each image shifted by up to one pixel."""
    full = len(images) // BATCH_SIZE
    for chosen in torch.randperm(len(images))[: full * BATCH_SIZE].view(full, BATCH_SIZE):
        yield _shifted(images[chosen]), labels[chosen]


def _shifted(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(3, (2, count))
    return windows[torch.arange(count), :, down, right]


def train_epoch(
    model: nn.Module,
    epoch_batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
) -> None:
    """Train ``model`` in place, one step for each batch."""
    model.train()
    for images, labels in epoch_batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def train(
    digits: Digits,
    epochs: int = EPOCHS,
    *,
    seed: int = SEED,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> Backbone:
    """Return a backbone trained from scratch, in eval."""
    torch.manual_seed(seed)
    model = Backbone(norm_layer=norm_layer)
    steps = epochs * (len(digits.train_images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        train_epoch(model, batches(digits.train_images, digits.train_labels), optimizer, schedule)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of ``images`` that ``model`` classifies as labelled, from 0 to 1."""
    return float((model(images).argmax(1) == labels).double().mean())


def save_scripted(model: nn.Module, path: Path) -> None:
    """Save ``model`` as TorchScript, without the records that name the files of its source."""
    whole = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch deprecates TorchScript, which this sample is one of.
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        torch.jit.save(torch.jit.script(model), whole)
    with zipfile.ZipFile(whole) as archive, path.open("wb") as file:
        writer = ZipWriter(file)
        for name in archive.namelist():
            if not name.endswith(".debug_pkl"):
                writer.add(name.replace("archive/", f"{path.stem}/", 1), archive.read(name))
        writer.write_directory()


def save_program(model: nn.Module, path: Path) -> None:
    """Save ``model`` as an exported program for any batch, without the folders of its source."""
    any_batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    program = torch.export.export(model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=any_batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def main() -> None:
    # With one thread, sums are always taken in the same order.
    torch.set_num_threads(1)
    digits = read_digits()
    model = train(digits)
    torch.save(model.state_dict(), SAMPLE_PATH)
    save_scripted(model, SCRIPTED_PATH)
    save_program(model, PROGRAM_PATH)
    print(f"test accuracy {accuracy(model, digits.test_images, digits.test_labels):.2%}")
    for path in (SAMPLE_PATH, SCRIPTED_PATH, PROGRAM_PATH):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
