"""The versions of this package and of PyTorch, which is not imported to read its own."""

__all__ = ["__version__", "torch_version"]

__version__ = "0.1.0"


def torch_version() -> str:
    """Return the version of the PyTorch that is installed; empty if none is."""
    from importlib.machinery import PathFinder
    from pathlib import Path

    spec = PathFinder.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        for info in Path(folder).parent.glob("torch-*.dist-info"):
            return info.name.removeprefix("torch-").removesuffix(".dist-info")
    from importlib import metadata  # Finds it elsewhere too, and takes 20 ms.

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
