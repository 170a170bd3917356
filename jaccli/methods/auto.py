"""``auto``: the method that selects another one, by the decision table of single calls and of plans."""

from __future__ import annotations

from math import inf

from jaccli import defaults
from jaccli.autograd.products import batching_imported
from jaccli.errors import note
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.methods.base import Method, MethodGap, MethodSelection, MethodTask, SelectionInput
from jaccli.methods.operator_costs import roughly
from jaccli.planning.linearize.linearization import Linearization
from jaccli.text.quantities import seconds

_FIRST_BATCHED = f"the first batched pass of a process imports for {seconds(defaults.SYMPY_IMPORT)}"


class Auto(Method):
    """Selects the method that is predicted to be the fastest. A single call uses this table, top to bottom:

        no path from source to target              nothing to compute: zeros
        the backward pass fails                    forward; finite-difference where that fails too
        the loop takes less than SOON              loop, or reverse where its imports are done
        the loop takes less than a graph capture   the fastest of the last row, without structured
        structured takes CLEARLY less than loop    structured
        otherwise                                  the fastest of loop, reverse, structured, and of forward where
                                                   n_in < 2 n_out (FORWARD_COLUMNS)

    A plan (``jaccli.plan``) takes the method of this table, searches the structure without a limit of time, records it
    as a program, and times both: the faster one is used. A structure that does not fit the memory is replaced by
    reverse. A method that fails later is replaced by its ``fallbacks``, and in the end by those of ``auto``.

    Times of single calls are predicted from counts of operators and sizes (``operator_costs``), not measured: two runs
    select alike. Reverse and forward are left out where the imports of their first pass take longer than the others.
    The constants are in ``jaccli.defaults``.

    Cost: what ``counted`` and ``Linearization.search_structure`` cost, unless the loop takes less than SOON.
    """

    name = "auto"
    needs_plain_attention = True
    recordable = True
    fallbacks = ("finite-difference",)

    def fill(self, task: MethodTask) -> None:
        raise NotImplementedError("auto fills nothing: the method that it selects does")

    def select(self, inputs: SelectionInput) -> MethodSelection:
        """The method, by the table above but for its first row, which ``planning.decide`` has."""
        linear = inputs.linear
        if linear.recorded_pass is None or inputs.linearization.probe.backward_gap:
            return self._without_backward(inputs)
        loop_s = roughly(linear, inputs.sizes)
        return _soon_done(linear, loop_s) if loop_s < defaults.SOON else self._fastest(inputs)

    def _fastest(self, inputs: SelectionInput) -> MethodSelection:
        """Structured where it is clearly faster than the loop, else the least predicted time."""
        linear = inputs.linear
        loop_s = inputs.work.loop(linear.f.n_out)
        gap, structured_s = structure_within(inputs.linearization, loop_s)
        if structured_s < defaults.CLEARLY * loop_s:
            why = f"{_shape(linear)}: {seconds(structured_s)} predicted from the network's structure"
            reasons = dict.fromkeys(("reverse", "loop"), f"at most {seconds(loop_s)}")
            return MethodSelection("structured", why, reasons, structured_s)
        others: dict[str, str] = {}
        if not batching_imported() and min(structured_s, loop_s) < defaults.SYMPY_IMPORT:
            others |= {name: _FIRST_BATCHED for name, method in inputs.methods.items() if method.batched}
        if gap is not None:
            others["structured"] = gap
        candidates = [method for name, method in inputs.methods.items() if name not in others]
        times = {method.name: method.predict(inputs) for method in candidates}
        predicted = {name: time for name, time in times.items() if time is not None}
        best = min(predicted, key=lambda name: predicted[name])
        others |= {name: f"{seconds(time)} predicted" for name, time in predicted.items() if name != best}
        if "forward" not in others and best != "forward":
            others["forward"] = f"{linear.f.n_in} columns against {linear.f.n_out} rows"
        why = f"{_shape(linear)}: {seconds(predicted[best])} predicted, the least"
        return MethodSelection(best, why, others, predicted[best])

    def _without_backward(self, inputs: SelectionInput) -> MethodSelection:
        """Forward where that works, else finite-difference, with a note. Cost: J by forward passes."""
        linear, linearization = inputs.linear, inputs.linearization
        gap = linearization.probe.backward_gap or "no gradients"
        backward: list[str] = [name for name, method in inputs.methods.items() if method.goes_backward]
        others = dict.fromkeys(backward, f"the backward pass fails: {gap}")
        try:
            task = MethodTask(linear, linear.value.new_zeros(linear.shape), inputs.chunk_of("forward"))
            inputs.methods["forward"].fill(task)
        except MethodGap as forward_gap:
            others["forward"] = str(forward_gap)
            note(
                f"{linearization.name}: the backward pass fails ({gap}), and so does forward mode; "
                "taken by finite differences"
            )
            return MethodSelection("finite-difference", "neither backward nor forward passes work", others)
        note(f"{linearization.name}: the backward pass fails ({gap}); taken in forward mode")
        return MethodSelection("forward", "the backward pass fails", others)


def structure_within(linearization: Linearization, loop_s: float) -> tuple[str | None, float]:
    """Why a single call cannot use ``structured``, or None, and its predicted seconds, infinite where it cannot.

    Args:
        linearization: f at the samples; keeps the structure.
        loop_s: seconds of the loop over rows; there is no search where it would take longer.
    """
    assert linearization.linear.recorded_pass is not None
    search_s = linearization.linear.recorded_pass.operators() * defaults.ENGINE_OPERATOR_S
    if loop_s < search_s:
        return f"a search for structure takes {seconds(search_s)}, the loop {seconds(loop_s)}", inf
    gap = linearization.search_structure()
    return gap, linearization.structure.seconds if linearization.structure is not None else inf


def _soon_done(linear: LinearizedFunction, loop_s: float) -> MethodSelection:
    why = f"{_shape(linear)}: backward passes are soon done"
    if not batching_imported():
        return MethodSelection("loop", why, {"reverse": _FIRST_BATCHED}, loop_s)
    forward = f"{linear.f.n_in} columns, not fewer"
    return MethodSelection("reverse", why, {"loop": "rows one by one, where they go together", "forward": forward})


def _shape(linear: LinearizedFunction) -> str:
    return f"{linear.f.n_out} rows, {linear.f.n_in} columns"
