"""Dask distributed, which is optional: its workers as a plain executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib.util import find_spec

from audit.base.usage import UsageError


@contextmanager
def dask_executor(scheduler: str, workers: int) -> Iterator[Executor]:
    """Of the cluster at an address, or "local": of so many processes on this machine.

    Raises UsageError where distributed is not installed, or nothing answers at the address.
    """
    if find_spec("distributed") is None:
        raise UsageError("--scheduler: distributed is not installed; pip install 'kl-audit[cluster]' has it")
    from distributed import Client, LocalCluster

    local = LocalCluster(n_workers=workers, threads_per_worker=1) if scheduler == "local" else None
    try:
        client = Client(local or scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise UsageError(f"--scheduler {scheduler}: no Dask scheduler answers: {error}") from None
    try:
        yield client.get_executor(pure=False)
    finally:
        client.close()
        if local is not None:
            local.close()
