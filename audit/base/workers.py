"""Work in other processes, of this machine or of a cluster, beside what this one does."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, TypeVar

from audit.base.usage import UsageError

Result = TypeVar("Result")
Later = Callable[[], Result]


class Submit(Protocol):
    """Begins function(*args), in another process if there is one; what is returned waits for the result."""

    def __call__(self, function: Callable[..., Result], *args: object) -> Later[Result]: ...


def later(function: Callable[..., Result], *args: object) -> Later[Result]:
    """Begins nothing: computes when first asked, and keeps the result alone."""
    pending: list[Any] = [partial(function, *args)]

    def answer() -> Result:
        if callable(pending[0]):
            pending[0] = pending[0]()
        return pending[0]  # type: ignore[no-any-return]

    return answer


class Workers:
    """`count` processes, this one among them: it takes its share where it would have to wait."""

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise UsageError(f"workers: expected 1 or more, this process among them, got {count!r}")
        self.count = count
        self._others = active_children()
        spawn = get_context("spawn")
        self._pool = ProcessPoolExecutor(count - 1, spawn, initializer=_give_way) if count > 1 else None
        self._begun: deque[tuple[Future[Any], Later[Any]]] = deque()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            if error:
                # Before 3.12 Python waits for ever where it is sending a call that nobody reads any more.
                self._pool._call_queue.cancel_join_thread()  # type: ignore[attr-defined]
            self._pool.shutdown(wait=error is None, cancel_futures=True)
            for process in active_children() if error else ():
                if process not in self._others:  # its work is for nobody
                    process.kill()

    def submit(self, function: Callable[..., Result], *args: object) -> Later[Result]:
        """See Submit; the function is one of a module that workers can import."""
        here = later(function, *args)
        if self._pool is None:
            return here
        try:
            future = self._pool.submit(function, *args)
        except BrokenExecutor:
            return here
        while self._begun and self._begun[0][0].done():
            self._begun.popleft()
        self._begun.append((future, here))
        return later(self._wait, future, here)

    def _wait(self, future: Future[Result], here: Later[Result]) -> Result:
        while self._begun and not future.done():
            other, work = self._begun.pop()  # the last, as the others begin with the first
            if other.cancel():
                with suppress(Exception):  # which is raised again where the result is asked for
                    work()
        try:
            return here() if future.cancelled() else future.result()
        except BrokenExecutor:  # a worker was killed, as for want of memory
            return here()


def _give_way() -> None:
    """Lets the devices' work, in the process that began this one, go first."""
    end_with_parent()
    os.nice(15)


def end_with_parent() -> None:
    """Makes this process end with the one that began it, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def dask_executor(scheduler: str, workers: int) -> Iterator[Executor]:
    """Dask distributed as a plain executor: the cluster at an address, or "local", so many processes of this machine.

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
