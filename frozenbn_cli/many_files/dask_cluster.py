"""A running Dask cluster as an executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from frozenbn_cli.errors import DependencyError, UsageError

__all__ = ["dask_executor"]


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Give the executor of the cluster whose scheduler is at ``address``.

    Work of a worker that is lost goes to another one: Dask tries three times before it gives up.
    How long a scheduler may take to answer is Dask's own setting, 30 seconds unless changed
    (``distributed.comm.timeouts.connect``).

    Args:
        address: Such as ``tcp://10.0.0.1:8786``.

    Raises:
        DependencyError: Dask is not installed.
        UsageError: Nobody answers at the address.
    """
    try:
        from distributed import Client  # noqa: PLC0415  # Takes long, and is seldom wanted.
    except ImportError as error:
        raise DependencyError(
            "a Dask cluster needs the package distributed, which is not installed",
            advice="pip install 'frozenbn-cli[dask]'",
        ) from error
    try:
        client: Any = Client(address, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers ({str(error) or type(error).__name__})",
            where=(address,),
            advice="Start one with `dask scheduler`, and give the address that it prints.",
        ) from error
    with client:
        yield client.get_executor(pure=False)
