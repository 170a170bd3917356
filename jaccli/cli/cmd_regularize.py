"""``jaccli regularize``: train, write the best parameters, report J before and after."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from jaccli.cli.endings import between_steps, deadline
from jaccli.cli.opening import check_files
from jaccli.cli.output_request import ReportRequest
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest
from jaccli.cli.results import Record, document, provenance, write_result
from jaccli.cli.run_request import TimedRequest
from jaccli.cli.train_request import TrainRequest
from jaccli.errors import INTERRUPTED, JaccliError, ResourceError, note, warn
from jaccli.names import pair_name

if TYPE_CHECKING:
    from jaccli.cli.job import Job
    from jaccli.cli.training_report import Stand
    from jaccli.cli.weights import Writer

# Outputs that moved by more of their spread on held-out samples are another function's.
DRIFTED = 0.3


def run(
    model: ModelRequest,
    inputs: InputRequest,
    pair: PairRequest,
    train: TrainRequest,
    how: TimedRequest,
    out: ReportRequest,
) -> None:
    """Train, write the best parameters, and report what J was and is."""
    check_files(model, inputs, pair)
    train.check(model, inputs)
    job, writer, before = _load(model, inputs, pair, train, how)
    start = time.perf_counter()
    stopped, failure = _train(job, how)
    seconds = time.perf_counter() - start
    job.settle()
    after = _figures(job, how)
    content = _document(job, before, after, stopped, train, seconds)
    _write(writer, model, content, train)
    _remarks(job, content)
    _report(job, content, before, after, out)
    if failure is not None:
        raise failure
    if stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _load(
    model: ModelRequest, inputs: InputRequest, pair: PairRequest, train: TrainRequest, how: TimedRequest
) -> tuple[Job, Writer | None, Stand]:
    """The training run, what will write its parameters, and figures of J before it."""
    from jaccli.cli.job import job_of
    from jaccli.cli.progress import status
    from jaccli.cli.weights import Writer

    with deadline(how.timeout), status(how.quiet, how.no_color) as say:
        say("loading")
        job = job_of(model, inputs, pair, train)
        # Before training: the file of MODEL may be gone or another one afterwards.
        writer = Writer(model, job.model, train.output) if train.output is not None else None
        say("J before training")
        return job, writer, job.figures()


def _figures(job: Job, how: TimedRequest) -> Stand:
    from jaccli.cli.progress import status

    with status(how.quiet, how.no_color) as say:
        say("J after training")
        return job.figures()


def _train(job: Job, how: TimedRequest) -> tuple[str, JaccliError | None]:
    """Why it stopped; and what is to be reported as an error once the best so far is safe."""
    from jaccli.cli.messages import STARTED, release_messages
    from jaccli.cli.training_view import View, watched

    run = job.training
    view = View(_heading(job), run.recipe.steps, "trained on" if job.held_out is job.train else "held out")
    release_messages()
    try:
        with watched(view, how.quiet, how.no_color) as show, deadline(how.timeout), between_steps() as stop_if_asked:
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
    names = [pair_name(*pair) for pair in goal.pairs]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} towards {goal.towards}, {job.training.recipe.steps} steps"


def _document(job: Job, before: Stand, after: Stand, stopped: str, train: TrainRequest, seconds: float) -> Record:
    from jaccli.cli.training_report import body_of

    timing = {**job.loaded.timing.document(), "train_s": seconds}
    return document("regularize", {**body_of(job, before, after, stopped, train.output), "timing": timing})


def _write(writer: Writer | None, model: ModelRequest, content: Record, train: TrainRequest) -> None:
    best = content["best_step"]
    if content["stopped"] in ("interrupted", "timeout", "memory"):
        note(f"stopped after step {content['steps']} ({content['stopped']}): kept is the best so far, step {best}")
    if best == 0:
        where = " on the held-out samples" if content["held_out"] else ""
        warn(f"no step was better than the start{where}: the parameters are as they were")
    if writer is None:
        note("nothing was written: -o NAME.safetensors keeps the weights")
        return
    count = writer.write(train.force, provenance(model, _about(content)))
    note(f"wrote {writer.path}: {count} tensors{_reading(model, writer)}")


def _reading(model: ModelRequest, writer: Writer) -> str:
    """What the written file needs to be read."""
    from jaccli.models.identify.import_spec import is_spec

    if writer.is_script:
        return ""
    if model.activation is not None:
        return f"; to be read with --activation {model.activation}"
    spec = model.path if is_spec(model.path) else model.arch
    return f"; to be read with --arch {spec if spec is not None else 'SPEC, or --activation NAME'}"


def _about(content: Record) -> dict[str, str]:
    """What the written file says of the training."""
    import json

    from jaccli.sinks.values import dumps

    pairs = content.get("pairs") or [content["pair"]]
    return {
        "pairs": ", ".join(f"{p['source']['layer']}->{p['target']['layer']}" for p in pairs),
        "towards": content["towards"],
        "steps": json.dumps({name: content[name] for name in ("steps", "best_step", "stopped")}),
        "before": dumps(content["before"]),
        "after": dumps(content["after"]),
    }


def _remarks(job: Job, content: Record) -> None:
    """Warn where the outputs of a network that was to keep them moved far."""
    if job.held_out is job.train or job.train.samples.targets is not None:
        return
    moved = content["after"]["held_out"]["moved"]
    if not moved <= DRIFTED:
        warn(
            f"on held-out samples the outputs moved by {moved:.2g} of their spread: more samples, a larger --jitter "
            "or a smaller --weight hold them better"
        )


def _report(job: Job, content: Record, before: Stand, after: Stand, out: ReportRequest) -> None:
    from jaccli.cli.training_report import columns_of, legend_of, records_of, rows_of, title_of
    from jaccli.sinks.table import TableView

    columns = columns_of(job.training.goal, job.train.samples.targets is not None)
    title, keys = title_of(job, content["stopped"]), columns.index("when") + 1
    view = TableView(rows_of(job, before, after), columns, title, keys)
    below = legend_of(job) if out.format == "table" else ""
    write_result(out, content, records_of(content), view, lambda _: below)
