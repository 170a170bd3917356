"""What to say where samples mix: often they are not where they were looked for."""

from __future__ import annotations

from jaccli.activations.function import LayerFunction
from jaccli.activations.misread import misread
from jaccli.planning.linearize import Linearization, computing
from jaccli.text.wording import Worded, worded


def where_samples_are(f: LayerFunction) -> Worded | None:
    """Advice on where the samples are, if not in the first dimension of the input. Cost: see ``misread``."""
    with computing(f.network):
        return misread(f.network, f.inputs, (f.source.address, f.target.address))


def mixing(linearization: Linearization, what: str = "J is each sample's own block, the others held") -> Worded:
    """``what`` samples that mix mean for the results, and where the samples may be instead."""
    text = "samples mix: a sample's target depends on the other samples; {what}{rest}"
    advice = where_samples_are(linearization.linear.f)
    return worded(text, what=what, rest="" if advice is None else worded("; {advice}", advice=advice))
