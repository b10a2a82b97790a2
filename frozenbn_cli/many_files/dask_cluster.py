"""A running Dask cluster as an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from frozenbn_cli.errors import DependencyError, UsageError

__all__ = ["dask_executor"]

_Result = TypeVar("_Result")


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
        from distributed import Client
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
        yield _DaskExecutor(client)


class _DaskExecutor(Executor):
    """Hands work to a cluster.

    Dask's own executor looks at a future's state once more after it has the result. Where the
    worker was lost in between, it takes that result for an error.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Return the future of a call, which some worker makes."""
        future = self._client.submit(fn, *args, pure=False, **kwargs)
        promised: Future[_Result] = Future()
        future.add_done_callback(partial(_settle, promised))
        promised.add_done_callback(lambda _: future.cancel() if promised.cancelled() else None)
        return promised


def _settle(promised: Future[Any], future: Any) -> None:
    """Pass on what came of Dask's future."""
    if future.cancelled():
        promised.cancel()
    if not promised.set_running_or_notify_cancel():
        return
    try:
        promised.set_result(future.result())
    except Exception as error:  # Whatever the cluster raises where workers fail.
        promised.set_exception(error)
