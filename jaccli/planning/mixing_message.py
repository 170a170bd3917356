"""What to say where samples mix: often they lie in another dimension than the first."""

from __future__ import annotations

from jaccli.activations.function import LayerFunction
from jaccli.activations.misread import misread
from jaccli.planning.linearize import Linearization, computing
from jaccli.text.wording import Worded, worded


def where_samples_are(f: LayerFunction) -> Worded | None:
    """Advice on which dimension counts the samples, if not the first one of the input. Cost: see ``misread``."""
    with computing(f.network):
        return misread(f.network, f.inputs, (f.source.address, f.target.address))


def mixing(linearization: Linearization, what: str = "J is each sample's own block, the others held") -> Worded:
    """That samples mix, ``what`` that means for the results, and which dimension may count the samples instead."""
    text = "samples mix: a sample's target depends on the other samples; {what}{rest}"
    advice = where_samples_are(linearization.linear.f)
    return worded(text, what=what, rest="" if advice is None else worded("; {advice}", advice=advice))
