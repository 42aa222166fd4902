"""A function of a file, here or in a process of its own: one that ends its process, or hangs, loses its own results."""

from __future__ import annotations

import io
import pathlib
import signal
import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from audit.base.text import describe
from audit.base.usage import UsageError
from audit.base.workers import end_with_parent
from audit.machine.measure import Misbehaved, same

if TYPE_CHECKING:
    from audit.paths import Function


def load(text: str) -> Callable[..., Any]:
    """The function that FILE.py:FUNCTION names, which may import what lies beside its file. Raises UsageError."""
    file, _, name = text.rpartition(":")
    if not file or not pathlib.Path(file).is_file():
        raise UsageError(f"--path-file {text}: expected FILE.py:FUNCTION with a file that exists")
    spec = spec_from_file_location(pathlib.Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--path-file {text}: {file} is not a Python file")
    module = module_from_spec(spec)
    sys.path.append(str(pathlib.Path(file).resolve().parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UsageError(f"--path-file {text}: importing {file} raised {describe(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        raise UsageError(
            f"--path-file {text}: {file} has no function {name!r}; it has {', '.join(functions) or 'none'}"
        )
    return function  # type: ignore[no-any-return]


def isolated(function: Function, text: str) -> Function:
    """The same function, that of FILE.py:FUNCTION, called in a process of its own, which is begun anew where it ended.

    What it raises there, and how its process ended, is raised here as Misbehaved. It is differentiable once.
    """
    home = _Home(text)

    @wraps(function)
    def kernel(input: Tensor, target: Tensor) -> Tensor:
        value: Tensor = _Call.apply(home, input, target)  # type: ignore[no-untyped-call]
        return value

    return kernel


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, home: _Home, input: Tensor, target: Tensor) -> Tensor:
        ctx.home = home
        ctx.save_for_backward(input, target)
        value: Tensor = home.ask(input, target, None)[0]
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.home.ask(*ctx.saved_tensors, upstream))


class _Home:
    """The process of a function, and the pipe to it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._begin()

    def _begin(self) -> None:
        spawn = get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(there, self._text), daemon=True)
        self._process.start()
        there.close()

    def ask(self, *call: Tensor | None) -> list[Any]:
        """The value of (input, target, None), or the gradients of (input, target, upstream)."""
        try:
            self._pipe.send_bytes(_packed(call))
            answer = _unpacked(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode or 0
            self._begin()
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            raise Misbehaved(f"ended its process {how}") from None
        except BaseException:  # it took too long, or the run was asked to end
            self._process.kill()
            self._begin()
            raise
        if isinstance(answer, str):
            raise Misbehaved(answer)
        return [None if part is None else part.to(call[0].device) for part in answer]  # type: ignore[union-attr]


def _serve(pipe: Connection, text: str) -> None:
    end_with_parent()
    function = load(text)
    while True:
        try:
            input, target, upstream = _unpacked(pipe.recv_bytes())
        except EOFError:  # the run needs it no more
            return
        try:
            before = input.clone(), target.clone()
            answer: object = _answer(function, input, target, upstream)
            if not (same(input, before[0]) and same(target, before[1])):
                answer = "changed its inputs in place"
        except Exception as error:
            answer = describe(error)
        pipe.send_bytes(_packed(answer))


def _answer(function: Function, input: Tensor, target: Tensor, upstream: Tensor | None) -> object:
    if upstream is None:
        with torch.no_grad():
            value: object = function(input, target)
        return [value] if isinstance(value, Tensor) else f"returned {type(value).__name__}, expected a tensor"
    sides = [t.detach().requires_grad_() for t in (input, target)]
    value = function(*sides)
    if not value.requires_grad:
        return [None, None]
    return list(torch.autograd.grad(value, sides, upstream, allow_unused=True))


def _packed(tensors: object) -> bytes:
    """With their strides, and with where they lie in what they are views of."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data))
