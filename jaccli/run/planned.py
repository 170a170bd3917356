"""``jaccli.Plan``: a decision for one model and layer pair, and J of any samples by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.activations.record import Inputs, record
from jaccli.errors import JaccliError, UsageError
from jaccli.names import pair_name
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision
from jaccli.planning.explain import explain
from jaccli.planning.linearize import Pair, computing
from jaccli.run.blocks import RunOptions, whole_jacobian
from jaccli.run.program_cache import ProgramCache
from jaccli.runtime.torch_errors import is_out_of_memory
from jaccli.text.escape import cut
from jaccli.text.quantities import dtype_name


@dataclass(frozen=True, repr=False)
class Plan:
    """A decision for one model, pair and shape of sample: ``plan(x)`` gives J, ``str(plan)`` explains.

    It keeps the further arguments that it was made with, not the samples. ``jaccli.plan`` makes it.

    Cost: a call takes the passes of its method, or one run of a recorded program; at calls 1, 2, 4, 8, … of a program
    a forward and two backward passes more, which check J.

    Example:
        >>> import jaccli, torch
        >>> plan = jaccli.plan(torch.nn.Tanh(), torch.zeros(2, 3), method="loop")
        >>> plan
        <jaccli.Plan input -> output: J of 3 x 3 for each sample, loop,
          of samples (3,), float32, on cpu; print(plan) explains>
        >>> plan(torch.zeros(5, 3)).shape
        torch.Size([5, 3, 3])

    Attributes:
        network: the model.
        pair: source and target.
        options: what the caller asked for.
        decision: how J is obtained.
        sample: shape of one sample.
        dtype: of the samples; likewise ``device``.
        shape: of J at the samples that it was made with, ``(batch, n_out, n_in)``.
        dim: the dimension of ``x`` that counts the samples.
        program_cache: the recorded programs; None where another method is used.
        args: further arguments of the model; likewise ``kwargs``.
    """

    network: Network
    pair: Pair
    options: RunOptions
    decision: Decision
    sample: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, int, int]
    dim: int = 0
    program_cache: ProgramCache | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, x: Tensor, *, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """J at other samples ``(batch, …)``, any number of them: ``(batch, n_out, n_in)``.

        Args:
            x: the samples.
            args: further arguments in place of the plan's ``args``, which are used, as they are now, if not given.
            kwargs: likewise.

        Raises:
            UsageError: the samples differ from the plan's in shape, dtype or device, or in number, and the plan's own
                arguments have rows for another number.
        """
        if isinstance(x, Tensor):
            self._check(x)
        inputs = Inputs.of(x, self.args if args is None else args, self.kwargs if kwargs is None else kwargs, self.dim)
        self.network.draws.warned.clear()  # each call is warned of
        self._check_rows(inputs, args is None, kwargs is None)
        if self.program_cache is not None and inputs.batch <= self.decision.block:
            return self.program_cache(inputs)
        return whole_jacobian(self.network, inputs, self.pair, self.options, self.decision)

    def _check(self, x: Tensor) -> None:
        """Check that samples ``(batch, …)`` are like the plan's, field by field."""
        sample = tuple(s for d, s in enumerate(x.shape) if d != self.dim)
        for name, value, expected in (
            ("sample shape", sample, self.sample),
            ("dtype", x.dtype, self.dtype),
            ("device", x.device, self.device),
        ):
            if value != expected:
                raise UsageError(
                    f"this plan does not fit: {name} {value}", f"expected {expected}", "make a plan for it"
                )

    def _check_rows(self, inputs: Inputs, old_args: bool, old_kwargs: bool) -> None:
        """Check that the plan's own arguments, which may have a row for each of its samples, fit these samples.

        Cost: a forward pass without gradients where there are such arguments.
        """
        batch = self.shape[0]
        named = [(f"args[{i}]", value) for i, value in enumerate(self.args) if old_args]
        named += [(f"kwargs[{name!r}]", value) for name, value in self.kwargs.items() if old_kwargs]
        rows = [name for name, value in named if isinstance(value, Tensor) and value.dim() and len(value) == batch]
        if batch in (1, inputs.batch) or not rows or self._accepts(inputs):
            return
        raise UsageError(
            f"this plan does not fit {inputs.batch} samples: its {', '.join(rows)} of {batch} rows",
            f"expected arguments for {inputs.batch} samples",
            "give them at the call: plan(x, args=…, kwargs=…)",
        )

    def _accepts(self, inputs: Inputs) -> bool:
        """Whether the model runs with these inputs, and its target has the size that it had."""
        source, target = self.pair
        try:
            with computing(self.network):
                activations = record(self.network, inputs, [source], [target], live=False)
        except JaccliError:
            return False
        except Exception as error:
            return is_out_of_memory(error)
        return activations.targets[target].activation[0].numel() == self.shape[1]

    def __str__(self) -> str:
        groups = self.program_cache.groups if self.program_cache is not None else 1
        return explain(pair_name(*self.pair), self.shape, self.decision, self.compile_s, self.kept_bytes, groups)

    def __repr__(self) -> str:
        _, n_out, n_in = self.shape
        method, name = self.decision.method or "zeros", cut(pair_name(*self.pair), 48)
        return (
            f"<jaccli.Plan {name}: J of {n_out} x {n_in} for each sample, {method},\n"
            f"  of samples {cut(str(self.sample), 30)}, {dtype_name(self.dtype)}, on {self.device}; "
            "print(plan) explains>"
        )

    @property
    def kept_bytes(self) -> int:
        """Memory for intermediate results that the plan keeps between calls."""
        return self.program_cache.kept_bytes if self.program_cache is not None else 0

    @property
    def compile_s(self) -> float | None:
        """Seconds that compiling took; None where nothing was compiled."""
        return self.program_cache.compile_s or None if self.program_cache is not None else None
