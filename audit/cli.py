"""Arguments to calls; no numerics. Torch is imported only by the commands that need it."""

from __future__ import annotations

import os
import pathlib
import shlex
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from io import TextIOWrapper
from signal import SIGPIPE
from time import perf_counter
from traceback import print_exc
from typing import Annotated, Any, TypeAlias

import typer
import typer.core

from audit.base.kinds import TOKENS, failing
from audit.base.supervision import Commands, Ended, asked_to_end, complain, finished, supervise, unwritten
from audit.base.text import plain
from audit.base.usage import UsageError, check_word

# Without effect, so refused, where a file of the user's own is judged; and where none is.
WITHOUT_FILE = ("profile", "case")
WITH_FILE = (
    "target_logits", "input_name", "target_name", "mask_name", "classes", "unpacked_limit", "input_kind", "target_kind",
    "all_rows", "resume", "scheduler",
)  # fmt: skip


def _refuse_idle(context: typer.Context, idle: tuple[str, ...], where: str) -> None:
    """Raises UsageError for options that were given and mean nothing in this kind of run."""
    for name in idle:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')} has no effect {where}: leave it out")


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Audit the numerical accuracy of the KL divergence as PyTorch computes it.",
)
LATEST = pathlib.Path("reports/latest")
Texts: TypeAlias = list[str] | None
Place: TypeAlias = pathlib.Path | None
Out = Annotated[pathlib.Path, typer.Option(help="Report folder, replaced as a whole when the run ends.")]
Paths = Annotated[Texts, typer.Option("--path", help="Path name or glob; repeatable.")]
Dtypes = Annotated[Texts, typer.Option("--dtype", help="float16, bfloat16, float32, float64; repeatable.")]
Format = Annotated[str, typer.Option("--format", help="text, markdown, json or github.")]
Baselines = Annotated[pathlib.Path, typer.Option(help="Folder of the baselines.")]


@app.command()
def run(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help="quick, standard or full.")] = "standard",
    case: Annotated[Texts, typer.Option(help="Case name or glob; repeatable.")] = None,
    path: Paths = None,
    dtype: Dtypes = None,
    device: Annotated[Texts, typer.Option(help="cpu, cuda, cuda:1 …; repeatable.")] = None,
    path_file: Annotated[Texts, typer.Option(help="FILE.py:FUNCTION, a kernel of your own.")] = None,
    isolate: Annotated[bool, typer.Option("--isolate", help="It runs in a process of its own.")] = False,
    logits: Annotated[Place, typer.Option(help="Tensors input and target, classes last: file, folder, glob.")] = None,
    target_logits: Annotated[Place, typer.Option(help="Where the target lies apart, likewise.")] = None,
    input_name: Annotated[str, typer.Option(help="Of the input's tensor.")] = "input",
    target_name: Annotated[str, typer.Option(help="Of the target's tensor.")] = "target",
    mask_name: Annotated[str, typer.Option(help="Of the tensor that is true for rows to judge.")] = "mask",
    classes: Annotated[int | None, typer.Option(help="Of --logits: the first N classes of both sides.")] = None,
    unpacked_limit: Annotated[int, typer.Option(help="MB that a small file may unpack to.")] = 256,
    input_kind: Annotated[str, typer.Option(help="Of --logits: logits, log_probs, probs, token_log_probs.")] = "logits",
    target_kind: Annotated[str, typer.Option(help="Of --logits: the same.")] = "logits",
    acknowledgements: Annotated[
        list[pathlib.Path] | None, typer.Option(help="Findings that are understood, beside the committed ones.")
    ] = None,
    references: Annotated[Place, typer.Option(help="Folder of another gold table.")] = None,
    out: Out = LATEST,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, with this one; default: one a core.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What is lossy fails too.")] = False,
    all_rows: Annotated[bool, typer.Option("--all-rows", help="Of --logits: every row, as Parquet parts.")] = False,
    scheduler: Annotated[str | None, typer.Option(help="Of --logits: Dask's local, or an address.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run over --logits.")] = False,
) -> None:
    """Measure every path on every device found and write the tables."""
    _refuse_idle(context, *((WITH_FILE, "without --logits") if logits is None else (WITHOUT_FILE, "with --logits")))
    _refuse_idle(context, () if path_file else ("isolate",), "without --path-file")
    if references is not None and not references.is_dir():
        raise UsageError(f"--references {references}: expected a folder with a gold table")
    if all_rows and find_spec("pyarrow") is None:
        raise UsageError("--all-rows writes Parquet, for which pyarrow is not installed")
    # torch's threads wait for work by spinning for milliseconds, which beside a busy process takes a run four times as
    # long. Read by GNU OpenMP when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch

    from audit.base.workers import Workers, dask_executor
    from audit.judge.findings import stanzas
    from audit.machine import plan as plans
    from audit.machine.devices import REMARKS, found
    from audit.machine.isolation import isolated, load
    from audit.paths import own_path
    from audit.pipeline import loop
    from audit.publish import terminal
    from audit.publish.folder import Kept, Spool, check_replaceable
    from audit.publish.report import write_report
    from audit.reference.gold import COMMITTED_GOLD, NAME

    own = [own_path(load(text)) for text in path_file or ()]
    if isolate:
        own = [replace(p, function=isolated(p.function, text)) for p, text in zip(own, path_file or (), strict=True)]
    chosen = [*(path or ()), *own] or None
    if logits is None:
        plan = plans.plan(profile, case, chosen, dtype, device)
    else:
        names = (input_name, target_name, mask_name)
        options: dict[str, Any] = {"paths": chosen, "dtypes": dtype, "devices": device}
        options |= {"target": target_logits, "names": names, "classes": classes, "limit": unpacked_limit}
        plan = plans.plan_file(logits, input_kind, target_kind, **options)
    check_replaceable(out)
    spool = Kept(out, f"{torch.__version__} {plan.identity}", resume) if plan.file else Spool()
    console = terminal.console()
    begun = [
        f"{sys.executable}, torch {torch.__version__}",
        f"devices: {', '.join(f'{d.name} ({d.model})' for d in plan.devices)}",
        *(f"{logits}: {note}" for note in (plan.file.notes if plan.file else ())),
        *(f"absent: {absent.name} ({absent.absent})" for absent in found() if absent.absent),
    ]
    terminal.say(console, "\n".join(begun))
    start, count, folder = perf_counter(), workers or os.cpu_count() or 1, references or COMMITTED_GOLD
    dask = dask_executor(scheduler, count) if scheduler else nullcontext()
    with Workers(1 if scheduler else count) as processes, dask as executor:
        with terminal.progress(console, sum(1 for _ in plan.problems()) + len(loop.LOOKS)) as advance:
            audit = loop.execute(
                plan,
                processes,
                advance,
                acknowledgements=acknowledgements or (),
                references=folder,
                spool=spool,
                executor=executor,
            )
        audit.environment["strict"] = strict
        audit.environment["command"] = plain(shlex.join(["python", "-m", "audit", *sys.argv[1:]]))
        parts = spool.parts() if all_rows else ()
        remark = write_report(audit.tables, audit.environment, out, audit.plots, parts)
        spool.close()
    total, seconds = perf_counter() - start, audit.environment["seconds"]
    terminal.show(audit.tables, audit.environment, out, console)
    spent = f"{total:.1f} s, {seconds['compiling']:.1f} of them compiling"
    if seconds["torch"] > 0.01:
        ratio = (total - seconds["compiling"]) / seconds["torch"]
        spent += f"; the rest is {ratio:.1f} times what torch alone took for the paths"
    remarks = [
        spent,
        remark,
        *sorted(REMARKS),
        *(f"FAILED {line}" for line in audit.failed_devices),
        "" if (folder / NAME).is_file() else f"no gold references in {folder}: every reference was computed",
        *(
            f"gold record {record} is damaged: computed instead; `references build` mends it"
            for record in audit.damaged
        ),
        *(f"acknowledgement [{name}]: no finding of its scope occurs any more" for name in audit.stale),
    ]
    failures = failing(audit.tables["findings"], strict)
    if len(failures):
        remarks += [
            "To acknowledge a finding, put its stanza with a reason into a file and give it to --acknowledgements, or "
            "into audit/acknowledgements.ini:",
            stanzas(failures),
        ]
    terminal.say(console, "\n".join(filter(None, remarks)))
    if len(failures) or audit.failed_devices:
        raise typer.Exit(1)


@app.command()
def compare(baseline: pathlib.Path, current: pathlib.Path, format: Format = "text") -> None:
    """Compare two report folders, or runs as in reports/history.csv:12; exit status 1 where the second is worse."""
    _compare(baseline, None, current, format)


@app.command()
def regress(
    report: pathlib.Path = LATEST, baselines: Baselines = pathlib.Path("reports/baselines"), format: Format = "text"
) -> None:
    """Compare a report, and the benchmarks beside it, with this machine's newest baseline."""
    _compare(None, baselines, report, format)


def _compare(baseline: Place, baselines: Place, report: pathlib.Path, format: str) -> None:
    """With a baseline, or with this machine's newest of `baselines`, where benchmarks can be repeated."""
    from audit.publish.bench import measure_again
    from audit.regress.changes import FORMATS, render
    from audit.regress.comparison import compare
    from audit.regress.reports import newest, read_report

    check_word(format, FORMATS, "--format")
    current = read_report(report)
    before = newest(current, baselines) if baselines else read_report(baseline or LATEST)
    if before is None:
        worse = len(failing(current.findings))
        typer.echo(
            f"no baseline for this machine and profile: the bounds alone judged, {worse} new findings; "
            'make baseline REASON="…" records one'
        )
    else:
        here = baselines is not None
        changes = compare(before, current, same_machine=here, repeat=measure_again if here else None)
        typer.echo(render(changes, before, current, format))
        worse = int(changes["worse"].sum())
    if worse:
        raise typer.Exit(1)


@app.command()
def baseline(
    reason: Annotated[str, typer.Option(help="Why these numbers are good.")] = "",
    report: pathlib.Path = LATEST,
    baselines: Baselines = pathlib.Path("reports/baselines"),
) -> None:
    """Record a report, and the benchmarks beside it, as this machine's baseline."""
    from audit.regress.reports import record

    typer.echo(f"recorded {record(report, reason, baselines)}")


@app.command()
def history(
    path: Paths = None,
    reports: Annotated[pathlib.Path, typer.Option(help="Folder with history.csv.")] = LATEST.parent,
) -> None:
    """Show what each path gave, run by run: where a number changed, and with which versions."""
    from audit.publish.tables import read_table
    from audit.regress.history import stretches, text

    typer.echo(text(stretches(read_table(reports, "history"), path)))


@app.command()
def references(
    what: Annotated[str, typer.Argument(help="build or verify.")],
    all_: Annotated[bool, typer.Option("--all", help="verify: every row, however long.")] = False,
    folder: Annotated[Place, typer.Option(help="Folder of the gold table; default: the committed one.")] = None,
) -> None:
    """Compute the committed references anew, or check them in a second way."""
    from audit.pipeline import certify
    from audit.reference.gold import COMMITTED_GOLD

    folder = folder or COMMITTED_GOLD
    if what == "build" and not all_:
        typer.echo(f"{certify.build(folder, os.cpu_count() or 1)} records in {folder}")
    elif what == "verify":
        problems, checked = certify.verify(folder, all_)
        said = f"{checked} values checked in a second way, {len(problems)} wrong, damaged, stale or missing"
        typer.echo("\n".join([*problems, said]))
        if problems:
            raise typer.Exit(1)
    else:
        wrong = "build: --all has no effect, leave it out" if all_ else f"{what!r} is not one of build, verify"
        raise UsageError(f"references {wrong}")


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="cases, paths, devices or causes.")]) -> None:
    """One line for each case, path, device or known defect there is."""
    from audit.explain import listing

    for name, text in listing(what):
        typer.echo(f"{name:28s} {text}")


@app.command()
def worst(
    path: Paths = None,
    dtype: Dtypes = None,
    classes: Annotated[int, typer.Option(min=2, help="Of a row.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each path, dtype and measure of error.")] = 10.0,
    record: Annotated[bool, typer.Option("--record", help="Add what beats it to references/worst.csv.")] = False,
) -> None:
    """Search inputs for the largest error, in roundoffs and as a share of the bound."""
    from audit.cases.worst import read_worst, write_worst
    from audit.explain.worst import searched

    records = read_worst()
    for found in searched(path, dtype, classes, seconds):
        new = found.beats(records)
        records += [found] if new else []
        share = f"{found.error / found.bound:.3g} of its bound"
        typer.echo(f"{found.path} {found.dtype}: {found.error:.4g} u, {share}{', a record' if new else ''}")
        if not record:
            typer.echo(f"  input {found.input[:300]}\n  target {found.target[:300]}")
    if record:
        write_worst(records)


@app.command()
def exhaustive(
    path: Annotated[list[str] | None, typer.Option(help="Path name; repeatable; default: the main ones.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    table: Annotated[pathlib.Path, typer.Option(help="What is known, and is gone on with.")] = pathlib.Path(
        "references/exhaustive.csv"
    ),
) -> None:
    """The largest error of every pair of float16, and of bfloat16, numbers as logits of two classes."""
    from audit.base.usage import choose
    from audit.explain.exhaustive import DTYPES, STRIDE, exhaust, numbers
    from audit.machine.plan import MAIN
    from audit.paths import registered
    from audit.publish import terminal

    names = choose(path or MAIN, [p.name for p in registered() if p.kind == "kl" and not p.absent], "path")
    known = [p for p in registered() if (p.input_kind, p.target_kind, p.reduction) == ("logits", "logits", "none")]
    paths = [p for p in known if p.name in names and not p.compiles and not p.cases]
    console = terminal.console()
    steps = sum(-(-len(numbers(dtype)) // STRIDE) for dtype in DTYPES) * len(paths)
    with terminal.progress(console, steps) as advance:
        found = exhaust(paths, DTYPES, device, table, advance)
    terminal.say(console, found.drop(columns=["versions", "when"]).to_string(index=False))


@app.command()
def thread(device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu") -> None:
    """The forum thread's numbers, explained and measured here."""
    from audit.looks.thread import measure_thread
    from audit.machine import devices
    from audit.publish import terminal

    for chosen in devices.select([device]):
        terminal.show_thread(measure_thread(chosen.name), terminal.console())


@app.command()
def diagnose(
    context: typer.Context,
    file: Annotated[pathlib.Path, typer.Argument(help="Holds input and target, as KLDivLoss gets them.")],
    reduction: Annotated[str, typer.Option(help="none, sum, mean or batchmean.")] = "mean",
    log_target: Annotated[bool, typer.Option("--log-target", help="As the loss had it.")] = False,
    dim: Annotated[int, typer.Option(help="Where the classes are.")] = -1,
    input_name: Annotated[str, typer.Option(help="Of the input's tensor.")] = "input",
    target_name: Annotated[str, typer.Option(help="Of the target's tensor.")] = "target",
    mask_name: Annotated[str, typer.Option(help="A boolean a row, true for those that count; optional.")] = "mask",
    kind: Annotated[str, typer.Option(help="distributions, or token_log_probs: a number a token.")] = "distributions",
) -> None:
    """Say what a negative, NaN or odd value of KLDivLoss means."""
    from rich.console import Console

    from audit.cases.files import read_pair
    from audit.explain.diagnosis import diagnose
    from audit.explain.tokens import diagnose_tokens

    if kind not in ("distributions", TOKENS):
        raise UsageError(f"--kind {kind}: expected distributions or {TOKENS}")
    _refuse_idle(context, ("reduction", "log_target", "dim") if kind == TOKENS else (), f"with --kind {TOKENS}")
    with Console(stderr=True).status(f"diagnosing {file}"):
        input, target, mask = read_pair(file, (input_name, target_name, mask_name))
        if kind == TOKENS:
            found: object = diagnose_tokens(input, target, mask)
        else:
            found = diagnose(input, target, reduction=reduction, log_target=log_target, dim=dim, mask=mask)
    typer.echo(str(found))


def _interrupted(number: int) -> int:
    """The exit status, once it is said what is in place."""
    # What a signal finds half imported cannot be imported here, and has made no report.
    folder = sys.modules.get("audit.publish.folder")
    new = folder.in_place() if folder else None
    state = f"the new report is in place: {new}" if new else "the report in place, if any, is left as it was"
    complain(f"interrupted; {state}")
    return 128 + number


def main() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        setattr(sys, name, stream)  # one that was closed before is None
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = 2
    try:
        if sys.argv[1:2] == ["run"]:
            supervise()
        status = app(standalone_mode=False) or 0
        finished()
        if number := asked_to_end():  # and what it raised was swallowed
            status = _interrupted(number)
    except Ended as end:
        status = _interrupted(end.number)
    except SystemExit:  # which click makes of a broken pipe
        status = 128 + SIGPIPE
    except Exception as error:
        if number := asked_to_end():
            status = _interrupted(number)
        elif message := getattr(error, "format_message", None):  # click's own, of what was typed
            complain(message())
        elif isinstance(error, OSError):
            status = unwritten(error)
        else:
            print_exc()  # a defect of the audit itself, and no finding
    try:
        sys.stdout.flush()
    except OSError as error:
        status = unwritten(error)
    finished()
    sys.exit(status)
