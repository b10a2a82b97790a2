"""The versions of this package and of PyTorch, where nothing has to be imported to read them."""

__all__ = ["__version__", "torch_version"]

__version__ = "0.1.0"


def torch_version() -> str:
    """Return the version of the PyTorch that is installed; empty if none is."""
    from importlib import metadata  # Takes 20 ms, and few need it.

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
