"""``jaccli regularize``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from jaccli.cli.endings import between_steps, deadline
from jaccli.cli.request import InputRequest, ModelRequest, OutputRequest, PairRequest, RunRequest
from jaccli.cli.train_request import TrainRequest, check_archive
from jaccli.errors import JaccliError, ResourceError, note, warn

if TYPE_CHECKING:
    from jaccli.cli.job import Job
    from jaccli.cli.training_report import Record, Stand
    from jaccli.cli.weights import Writer

INTERRUPTED = 130
# Outputs that moved by more of their spread on held-out samples are another function's.
DRIFTED = 0.3


def run(
    model: Callable[[], ModelRequest],
    given: Callable[[], InputRequest],
    names: PairRequest,
    how: RunRequest,
    out: OutputRequest,
    wanted: TrainRequest,
) -> None:
    """Train, write the best parameters, and report what J was and is."""
    asked, samples = model(), given()
    check_archive(asked, wanted.output)
    from jaccli.cli.job import job_of
    from jaccli.cli.progress import status
    from jaccli.cli.weights import Writer

    with deadline(how.timeout), status(how.quiet, how.no_color) as tell:
        tell("loading")
        job = job_of(asked, samples, names, wanted)
        # Before training: what it was read from may be gone or another file afterwards.
        writer = Writer(asked, job.model, wanted.output) if wanted.output is not None else None
        tell("J before training")
        before = job.figures()
    start = time.perf_counter()
    stopped, failure = _train(job, how)
    seconds = time.perf_counter() - start
    job.settle()
    with status(how.quiet, how.no_color) as tell:
        tell("J after training")
        after = job.figures()
    document = _document(job, before, after, stopped, wanted, seconds)
    _write(writer, asked, document, wanted)
    _remarks(job, document)
    _report(job, document, before, after, out)
    if failure is not None:
        raise failure
    if stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _train(job: Job, how: RunRequest) -> tuple[str, JaccliError | None]:
    """Why it stopped; and what is to be reported as an error once the best so far is safe."""
    from jaccli.cli.messages import STARTED, release_messages
    from jaccli.cli.training_view import View, watched

    run = job.training
    seen = View(_heading(job), run.recipe.steps, "trained on" if job.held_out is job.train else "held out")
    release_messages()
    try:
        with (
            watched(seen, how.quiet, how.no_color) as show,
            deadline(how.timeout),
            between_steps() as stop_if_asked,
        ):
            for step in run:
                show(step)
                stop_if_asked()
    except KeyboardInterrupt:
        if run.best is None:
            raise
        return "interrupted", None
    except ResourceError as error:
        if run.best is None:
            raise
        late = how.timeout is not None and time.perf_counter() - STARTED >= how.timeout
        return "timeout" if late else "memory", error
    return run.stopped, None


def _heading(job: Job) -> str:
    goal = job.training.goal
    names = [f"{source} -> {target}" for source, target in goal.pairs]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} towards {goal.towards}, {job.training.recipe.steps} steps"


def _document(job: Job, before: Stand, after: Stand, stopped: str, wanted: TrainRequest, seconds: float) -> Record:
    from jaccli.cli.training_report import document_of

    document = document_of(job, before, after, stopped, wanted.output)
    document["timing"] = {**job.loaded.timing.document(), "train_s": seconds}
    return document


def _write(writer: Writer | None, asked: ModelRequest, document: Record, wanted: TrainRequest) -> None:
    best = document["best_step"]
    if document["stopped"] in ("interrupted", "timeout", "memory"):
        note(f"stopped after step {document['steps']} ({document['stopped']}): kept is the best so far, step {best}")
    if best == 0:
        where = " on the held-out samples" if document["held_out"] else ""
        warn(f"no step was better than the start{where}: the parameters are as they were")
    if writer is None:
        note("nothing was written: -o NAME.safetensors keeps the weights")
        return
    count = writer.write(wanted.force, _provenance(asked, document))
    note(f"wrote {writer.path}: {count} tensors{_reading(asked, writer)}")


def _reading(asked: ModelRequest, writer: Writer) -> str:
    """What the written file needs to be read."""
    from jaccli.models.identify.import_spec import is_spec

    if writer.is_script:
        return ""
    if asked.activation is not None:
        return f"; to be read with --activation {asked.activation}"
    spec = asked.path if is_spec(asked.path) else asked.arch
    return f"; to be read with --arch {spec if spec is not None else 'SPEC, or --activation NAME'}"


def _provenance(asked: ModelRequest, document: Record) -> dict[str, str]:
    import json
    import platform

    import torch

    from jaccli import __version__
    from jaccli.cli.messages import command_line
    from jaccli.models.load import model_hash
    from jaccli.sinks.text import dumps

    pairs = document.get("pairs") or [document["pair"]]
    return {
        "model": asked.path,
        "model_sha256": model_hash(asked.path),
        "pairs": ", ".join(f"{p['source']['layer']}->{p['target']['layer']}" for p in pairs),
        "towards": document["towards"],
        "steps": json.dumps({name: document[name] for name in ("steps", "best_step", "stopped")}),
        "before": dumps(document["before"]),
        "after": dumps(document["after"]),
        "jaccli": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": command_line(),
    }


def _remarks(job: Job, document: Record) -> None:
    if job.held_out is job.train or job.train.samples.targets is not None:
        return
    moved = document["after"]["held_out"]["moved"]
    if not moved <= DRIFTED:
        warn(
            f"on held-out samples the outputs moved by {moved:.2g} of their spread: more samples, a larger --jitter "
            "or a smaller --weight hold them better"
        )


def _report(job: Job, document: Record, before: Stand, after: Stand, out: OutputRequest) -> None:
    from jaccli.cli.training_report import columns_of, legend_of, records_of, rows_of, title_of
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.table import TableView
    from jaccli.sinks.terminal import style_for

    columns = columns_of(job.training.goal, job.train.samples.targets is not None)
    view = TableView(
        rows_of(job, before, after), columns, title_of(job, document["stopped"]), keys=columns.index("when") + 1
    )
    style = style_for(None, out.no_color)
    with open_output(None, False) as handle:
        write_numbers(
            out.format,
            handle,
            document=document,
            records=records_of(document),
            view=view,
            style=style,
        )
        if out.format == "table":
            handle.write(style.encode(legend_of(job)))
