"""Converts a checkpoint, which is hashed from before it is opened."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from frozenbn_cli.containers.fingerprint import Fingerprint
from frozenbn_cli.conversion.steps import convert_checkpoint
from frozenbn_cli.conversion.terms import ConversionResult, ConvertOptions
from frozenbn_cli.outputs import check_name, default_output, format_of
from frozenbn_cli.stages import Progress, telling

__all__ = ["ConversionResult", "ConvertOptions", "convert_file"]


def convert_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Freeze the BatchNorm2d layers of a checkpoint and write the result.

    The output is verified against the input before it gets its name: it is whole and right, or
    not there. The input is never changed, and no pickle in it is executed. A TorchScript archive
    is rewritten without being run, and then run to verify the result.

    Args:
        path: The checkpoint.
        output: Where the result belongs, in a name that fits the format; beside the input as
            ``NAME.frozen.safetensors``, ``NAME.frozen.pt`` or ``NAME.frozen.pt2`` if None.
        output_dir: The folder for that name instead of the input's; made if it is not there.
        options: How to convert.
        progress: Is told how far the work has come.

    Returns:
        What was done, or would be done in a dry run.

    Raises:
        InputError: The input is damaged or of an unsupported kind.
        UsageError: The output exists, is the input, has the name of another format, or a pattern
            matches no layer.
        OutputError: The output cannot be written.
        RefusedError: There is nothing to freeze, statistics are broken, or the verification
            failed; the error's ``result`` holds what was found until then.
    """
    path, target = Path(path), None if output is None else Path(output)
    options = options or ConvertOptions()
    check_name(target, options.to)
    with telling(progress), closing(Fingerprint.of(path)) as sha256:
        if not options.dry_run:
            sha256.begin()
        with options.open(path) as checkpoint, closing(sha256):  # It reads the same files.
            sha256.go_on(checkpoint.sources, checkpoint.archives)
            to = format_of(checkpoint, options.to, target)
            target = target or default_output(path, to)
            folder = None if output_dir is None else Path(output_dir)
            return convert_checkpoint(checkpoint, target, folder, to, options, sha256)
