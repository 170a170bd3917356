"""Tensors that are no dense numbers: as input, as an end of J, in the way, as weights. The true reason is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.activations.calls import watch
from jaccli.activations.record import Inputs
from jaccli.models.adapt import as_network
from jaccli.samples.load import load_samples
from jaccli.samples.spec import parse_input

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.detach(), 0.05, 0, torch.qint8)


def nested(layout: torch.layout) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.nested.as_nested_tensor([*x], layout=layout)


# What makes a tensor such, what makes it dense again, and the words of the error.
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "float8": (lambda x: x.to(torch.float8_e4m3fn), lambda x: x.float(), "float8_e4m3fn"),
    "float8 scale": (lambda x: x.to(torch.float8_e8m0fnu), lambda x: x.float(), "float8_e8m0fnu"),
    "coo": (lambda x: x.to_sparse(), lambda x: x.to_dense(), "sparse (coo)"),
    "csr": (lambda x: x.to_sparse_csr(), lambda x: x.to_dense(), "sparse (csr)"),
    "nested": (nested(torch.strided), lambda x: torch.stack([*x.unbind()]), "nested tensor"),
    "jagged": (nested(torch.jagged), lambda x: torch.stack([*x.unbind()]), "nested tensor"),
    "quantized": (quantized, lambda x: x.dequantize(), "quantized values (qint8)"),
    "mkldnn": (lambda x: x.to_mkldnn(), lambda x: x.to_dense(), "mkldnn tensor"),
    "meta": (lambda x: x.to("meta"), lambda x: torch.zeros(x.shape), "meta device"),
}
# What torch differentiates on the way, the others round or are no path.
SMOOTH = ("coo", "csr", "nested", "jagged", "mkldnn")
EACH = pytest.mark.parametrize("kind", KINDS)
X = torch.linspace(-1, 1, 6).reshape(2, 3)


class By(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


def network(kind: str, *, to: bool = True, back: bool = True) -> nn.Module:
    torch.manual_seed(0)
    there, home, _ = KINDS[kind]
    chain = [("first", nn.Linear(3, 3)), ("there", By(there)), ("back", By(home)), ("last", nn.Linear(3, 3))]
    model = nn.Sequential()
    for name, layer in chain[: None if back else 2] if to else chain[2:]:
        model.add_module(name, layer)
    return model


def said(call: Callable[[], object], kind: str) -> jaccli.JaccliError:
    with pytest.raises((jaccli.UnsupportedError, jaccli.RefusedError)) as caught:
        call()
    text = str(caught.value)
    assert KINDS[kind][2] in text, text
    assert len(text.splitlines()) <= 3
    assert "--dtype" not in text
    return caught.value


@EACH
def test_as_an_end(kind: str) -> None:
    """An activation from which, or to which, J is wanted, and the model's output: by every function."""
    between, at_end = network(kind), network(kind, back=False)
    for call in (
        lambda: jaccli.jacobian(between, X, "there"),
        lambda: jaccli.jacobian(between, X, "input", "there"),
        lambda: jaccli.jacobian(at_end, X),
        lambda: jaccli.plan(between, X, "there"),
        lambda: jaccli.operator(between, X, "input", "there"),
        lambda: jaccli.identity_deviation(between, X, "there"),
        lambda: jaccli.jacobian(between, X, "there", method="finite-difference"),
    ):
        said(call, kind)


@EACH
def test_as_the_input(kind: str) -> None:
    x = KINDS[kind][0](X)
    said(lambda: jaccli.jacobian(network(kind, to=False), x), kind)
    said(lambda: jaccli.operator(network(kind, to=False), x), kind)


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("method", ["auto", "structured", "finite-difference"])
def test_in_the_way(kind: str, method: str) -> None:
    """What torch differentiates is differentiated."""
    model = network(kind)
    want = model.last.weight @ model.first.weight  # type: ignore[operator, union-attr]
    found = jaccli.jacobian(model, X, method=method)  # type: ignore[arg-type]
    torch.testing.assert_close(found, want.detach().expand(2, 3, 3), rtol=1e-3, atol=1e-4)


def test_rounding_in_the_way_is_told() -> None:
    """No gradient flows through quantized values, while the output moves."""
    with pytest.warns(jaccli.JaccliWarning, match="no gradient flows"):
        assert not jaccli.jacobian(network("quantized"), X).any()


@EACH
def test_as_a_further_argument(kind: str) -> None:
    """It is the model's to take, and J is that of the samples."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return self.fc(x) * KINDS[kind][1](gate)

    model, gate = Gated(), KINDS[kind][0](torch.full((2, 3), 0.5))
    factor = 0.0 if kind == "meta" else 0.5
    want = (factor * model.fc.weight.detach()).expand(2, 3, 3)
    torch.testing.assert_close(jaccli.jacobian(model, X, args=(gate,)), want)


def test_a_model_without_values() -> None:
    with pytest.raises(jaccli.RefusedError, match="meta device"):
        jaccli.jacobian(nn.Linear(3, 3, device="meta"), X)


@EACH
def test_layers_are_listed(kind: str) -> None:
    """Their shapes, as far as they have one."""
    seen, _ = watch(as_network(network(kind)), Inputs((X,)))
    ((shape, dtype),) = seen["there"].outputs.values()
    assert shape == ((2,) if "nested" in KINDS[kind][2] else (2, 3))
    assert all(type(size) is int for size in shape)
    assert dtype


@pytest.mark.parametrize("kind", ["coo", "csr", "nested", "quantized", "meta"])
def test_in_a_file(kind: str, tmp_path: Path) -> None:
    torch.save(KINDS[kind][0](X), tmp_path / "x.pt")
    said(lambda: load_samples(parse_input(str(tmp_path / "x.pt"))), kind)


@pytest.mark.parametrize("kind", ["coo", "csr"])
def test_among_saved_weights(kind: str, tmp_path: Path) -> None:
    weights = nn.Linear(3, 3).state_dict()
    torch.save({**weights, "weight": KINDS[kind][0](weights["weight"])}, tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = said(lambda: jaccli.load_model(str(tmp_path / "w.pt"), arch=lambda: nn.Linear(3, 3)), kind)
    assert "'weight'" in str(error)
