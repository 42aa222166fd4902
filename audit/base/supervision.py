"""How a command ends: its status, its last words, and a run in a child process whose parent says what it was at."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from contextlib import suppress
from threading import Thread
from types import FrameType
from typing import Any, NoReturn

import typer
import typer.core

from audit.base.text import plain
from audit.base.usage import UsageError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIZE = 1_000
_page = mmap.mmap(-1, _SIZE)  # anonymous and shared: outlives whoever wrote into it
_case = ""
_asked = 0


class Ended(BaseException):
    """Asked to end by the signal `number`, as by Ctrl-C; no KeyboardInterrupt, which others answer in their way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Commands(typer.core.TyperGroup):
    """Exit status: 0 every gate holds, 1 new findings, 2 wrong usage, unreadable input or unwritable output.

    130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads the output any more.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Raises UsageError for an option that takes one value and is given two, and for an empty one."""
        name, command, rest = super().resolve_command(ctx, args)
        parameters: list[Any] = command.params if command else []
        for option in (p for p in parameters if p.param_type_name == "option" and not p.is_flag):
            given = [i for i, word in enumerate(rest) if word.partition("=")[0] in option.opts]
            if len(given) > 1 and not option.multiple:
                raise UsageError(f"{option.opts[0]} takes one value and is given {len(given)} times")
            if any(rest[i].endswith("=") or rest[i + 1 : i + 2] == [""] for i in given):
                raise UsageError(f"{option.opts[0]}: expected a value, got an empty one")
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            complain(str(error))
            raise typer.Exit(2) from None
        except OSError as error:
            raise typer.Exit(unwritten(error)) from None
        except KeyboardInterrupt:
            raise Ended(signal.SIGINT) from None


def complain(text: str) -> None:
    if text:
        with suppress(OSError):  # there may be no one to say it to
            print(f"kl-audit: {plain(' '.join(text.split()))}", file=sys.stderr, flush=True)


def unwritten(error: OSError) -> int:
    """The exit status where standard output, or whatever else, cannot be read or written."""
    with suppress(OSError):  # what is in the buffer still would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    complain(str(error))
    return 2


def on_case(name: str) -> None:
    """What the calls to come are of."""
    global _case
    _case = name


def calling(path: str, dtype: str, device: str) -> None:
    """What is about to be called; it costs a microsecond. Raises Ended where a signal's was swallowed."""
    if _asked:
        raise Ended(_asked)
    _page[:] = f"{_case}, {dtype}, path {path} on {device}".encode()[:_SIZE].ljust(_SIZE, b"\0")


def finished() -> None:
    """From here on whatever status this process ends with is meant, and no signal changes it."""
    _page[:] = b"\1" * _SIZE
    for number in ENDING:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def supervise() -> None:
    """Returns in a child process, which ends with this one; this one passes signals on, and ends as the child does."""
    sys.stdout.flush()
    watched, held = os.pipe()
    child = os.fork()
    if child:
        os.close(watched)
        _wait(child)
    os.close(held)
    Thread(target=_end_with, args=(watched,), daemon=True).start()
    sys.unraisablehook = _report_unraisable
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)


def asked_to_end() -> int:
    """The signal that asked this process to end, or 0: an import that it meets may raise another error for it."""
    return _asked


def _end(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = number
    for each in ENDING:  # Ctrl-C reaches both processes, so that the child may hear of it twice
        signal.signal(each, signal.SIG_IGN)
    raise Ended(number)


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    # Asked to end, a process may have swallowed Ended, and its workers' pipes are closed beneath their threads.
    if not _asked:
        sys.__unraisablehook__(unraisable)


def _end_with(parent: int) -> None:
    os.read(parent, 1)
    os._exit(1)


def _wait(child: int) -> NoReturn:
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, signal.SIGKILL if asked else number)  # who asks twice will not wait
        asked.append(number)

    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    if _page[0] != 1:
        if asked:
            os._exit(128 + asked[0])
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        what = _page[:].rstrip(b"\0").decode(errors="replace") or "nothing yet"
        print(f"kl-audit: the run ended {how}, and without a report, while this was running: {what}", file=sys.stderr)
        status = 2
    os._exit(status if status >= 0 else 128 - status)
