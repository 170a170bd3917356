"""Makes a run of ``jaccli regularize`` ready: loads model, samples and targets, and checks that they can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jaccli.activations.address import matches
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest
from jaccli.cli.train_request import TrainRequest
from jaccli.cli.work import Loaded, load, load_any
from jaccli.errors import UnsupportedError, UsageError, note
from jaccli.networks.dtypes import converted, floating_dtype
from jaccli.run.sample_ranges import one_batch_only
from jaccli.samples.load import load_samples
from jaccli.samples.spec import InputSpec
from jaccli.text.quantities import dtype_name
from jaccli.training.descent import Parameter, parameters_of
from jaccli.training.goal import TrainingFigures, figures, goal_of
from jaccli.training.loop import Recipe, Training
from jaccli.training.samples import Samples, has_rows_of_arguments
from jaccli.training.task import Original, TrainingTask, task_of

# Every fifth sample is held out; where there are fewer than five, none is.
ONE_IN = 5
BATCH = 256
# The report uses at most this many samples, evenly spaced, of those trained on and of those held out.
REPORTED = 1024
_HALVES = ("float16", "bfloat16")


@dataclass
class Share:
    """Samples of one kind: ``numbers`` are those in the file; ``origin`` says where held-out ones come from."""

    samples: Samples
    numbers: list[int]
    origin: str = "share"


@dataclass
class Job:
    """A training run that is ready to start.

    Args:
        loaded: the network that is trained.
        model: the model once more, to be written with the trained values.
        parameters: the tensors of both.
        train: samples trained on.
        held_out: samples not trained on, or those trained on where there are too few.
        task: what the network does besides.
        training: the run.
        size: of a batch.
    """

    loaded: Loaded
    model: nn.Module
    parameters: list[Parameter]
    train: Share
    held_out: Share
    task: TrainingTask
    training: Training
    size: int

    def figures(self) -> dict[str, TrainingFigures]:
        """Where the network stands now, by kind of samples; nothing of ``held_out`` where none are."""
        network, goal, watch = self.loaded.network, self.training.goal, self.loaded.timing.watch
        by_kind: dict[str, TrainingFigures] = {}
        for kind, share in (("train", self.train), ("held_out", self.held_out)):
            if kind == "train" or share is not self.train:
                samples = share.samples.evenly_spaced(REPORTED)
                by_kind[kind] = figures(network, samples, goal, self.task, self.size, watch)
        return by_kind

    def settle(self) -> None:
        """The best parameters into the network and into the model to be written."""
        self.training.restore()
        for one in self.parameters:
            one.settle()


def job_of(request: ModelRequest, inputs: InputRequest, pair: PairRequest, train: TrainRequest) -> Job:
    """Load everything, and check that it can be trained.

    Raises:
        UsageError, RefusedError, UnsupportedError: as ``load``; targets, names or layers that do not fit.
    """
    model = load_any(request)
    loaded = load(_in_full_precision(request, model), inputs, pair)
    whole = loaded.network.only_batch(loaded.inputs.dim) is not None
    together = not whole and has_rows_of_arguments(loaded.network, loaded.inputs)
    every = Samples(loaded.inputs, _targets(train, loaded), together, whole)
    trained_on, held_out = _shares(every, loaded, train)
    size = _batch_size(trained_on.samples, train)
    samples, probes = trained_on.samples, train.probes or 1
    goal = goal_of(loaded.network, samples, loaded.pairs, train.towards, train.weight, train.estimator, probes)
    if every.targets is None and any(a.is_model_input and b.is_model_output for a, b in goal.pairs):
        note(
            "J of the whole model is to change while its outputs stay: --weight sets the compromise, or give --targets"
        )
    parameters = _chosen(parameters_of(loaded.network, model), train.trained)
    task = task_of(Original(loaded.network, samples, size), samples)
    if held_out is not trained_on:
        task_of(task.original, held_out.samples, "validate_targets")
    recipe = Recipe(train.steps, train.lr, size, train.patience, train.seed, train.jitter)
    run = Training(loaded.network, parameters, samples, held_out.samples, task, goal, recipe)
    return Job(loaded, model, parameters, trained_on, held_out, task, run, size)


def _batch_size(samples: Samples, train: TrainRequest) -> int:
    """Samples of one step.

    Raises:
        UnsupportedError: ``--batch-size`` of a model that takes all samples at once or none.
    """
    count = len(samples)
    if samples.whole and train.batch_size not in (None, count):
        raise _one_batch(f"--batch-size {train.batch_size}", count, "leave it out")
    return count if samples.whole else train.batch_size or min(count, BATCH)


def _one_batch(request: str, count: int, remedy: str) -> UnsupportedError:
    return one_batch_only(f"{request}: the model was exported for {count} samples at a time", remedy)


def _in_full_precision(request: ModelRequest, model: nn.Module) -> ModelRequest:
    """In half precision most steps are too small to change a weight."""
    dtypes = (dtype_name(p.dtype) for p in model.parameters())
    kind = request.dtype or next((dtype for dtype in dtypes if dtype in _HALVES), None)
    if kind not in _HALVES:
        return request
    note(f"in {kind} small steps are lost: trained in float32, and figures are of float32 (--dtype float32)")
    return replace(request, dtype="float32")


def _shares(every: Samples, loaded: Loaded, train: TrainRequest) -> tuple[Share, Share]:
    """Samples to train on and to hold out: those of ``--validate``, or every fifth."""
    count = len(every)
    if train.validate is not None:
        validation = _validation(train.validate, every, loaded, train)
        return Share(every, loaded.numbers), Share(validation, list(range(len(validation))), "validate")
    if count < ONE_IN or every.whole:
        samples = "1 sample" if count == 1 else f"{count} samples"
        reason = "too few to hold one out" if count < ONE_IN else "the model was exported for so many at a time"
        note(
            f"{samples}: {reason}, so there is no validation, and the best parameters are chosen by those trained on "
            "(--validate gives others)"
        )
        # One and the same share twice: ``held_out is train`` tells the report that there is no validation.
        share = Share(every, loaded.numbers, "train")
        return share, share
    held_out = range(ONE_IN - 1, count, ONE_IN)
    trained_on = [n for n in range(count) if n not in held_out]
    train_share, validation_share = (
        Share(every.subset(part), [loaded.numbers[n] for n in part]) for part in (trained_on, held_out)
    )
    return train_share, validation_share


def _validation(spec: InputSpec, every: Samples, loaded: Loaded, train: TrainRequest) -> Samples:
    """The samples of ``--validate``, with the further arguments of those trained on."""
    x = _ready(load_samples(spec), loaded)
    if every.together:
        raise UsageError(
            "--validate: an --arg has one row for each sample of -i",
            "expected arguments that are the same for all samples",
            "leave --validate out: every fifth sample is held out",
        )
    inputs = replace(every.inputs, args=(x, *every.inputs.args[1:]))
    if every.whole and inputs.batch != len(every):
        raise _one_batch(f"--validate has {inputs.batch} samples", len(every), f"give {len(every)}")
    targets = _targets(train, replace(loaded, inputs=inputs), "--validate-targets")
    return Samples(inputs, targets, whole=every.whole)


def _ready(tensor: Tensor, loaded: Loaded) -> Tensor:
    """A tensor of any shape on the device and in the dtype of the samples that are trained on."""
    x = loaded.inputs.args[0]
    return converted(tensor, x.device, x.dtype if x.is_floating_point() else None)


def _targets(train: TrainRequest, loaded: Loaded, flag: str = "--targets") -> Tensor | None:
    """``(batch, …)``: floats in the dtype of the model, or whole numbers."""
    spec = train.targets if flag == "--targets" else train.validate_targets
    if spec is None:
        return None
    targets, numbers = load_samples(spec), loaded.numbers
    picked = len(numbers) if flag == "--targets" else loaded.inputs.batch
    first = floating_dtype(loaded.network.tensors()) or torch.float32
    targets = targets.to(loaded.inputs.args[0].device, first if targets.is_floating_point() else torch.int64)
    if flag == "--targets" and numbers != list(range(picked)) and len(targets) > max(numbers):
        return targets[numbers]
    if len(targets) != picked:
        raise UsageError(
            f"{flag} has {len(targets)} rows",
            f"expected {picked}, one for each sample",
            f"give {picked} rows to {flag}",
        )
    return targets


def _chosen(parameters: list[Parameter], globs: Sequence[str]) -> list[Parameter]:
    """The parameters that ``--train`` names; the others get no gradients."""
    if not globs:
        return parameters
    names = [one.name for one in parameters]
    chosen: set[str] = set()
    for pattern in globs:
        matching = [name for name in names if matches(pattern, _prefixes(name))]
        if not matching:
            raise UsageError(
                f"--train {pattern!r} matches none of the {len(names)} parameters",
                f"expected such as {', '.join(names[:4])}" + ", …" * (len(names) > 4),
                "leave --train out for all of them",
            )
        chosen |= set(matching)
    for one in parameters:
        one.value.requires_grad_(one.name in chosen)
    return [one for one in parameters if one.name in chosen]


def _prefixes(name: str) -> list[str]:
    """``fc2.weight`` is named by ``fc2`` as well."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
