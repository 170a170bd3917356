"""Weights packed into integers: what is said is that their kernels have no derivative, and what helps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import jaccli
from jaccli.errors import RefusedError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    if torch.backends.quantized.engine == "none":
        pytest.skip("this build has no int8 kernels")
    with warnings.catch_warnings():
        yield


def dynamic(model: nn.Module | None = None, kind: type[nn.Module] = nn.Linear) -> nn.Module:
    found: nn.Module = torch.ao.quantization.quantize_dynamic(model or Net().eval(), {kind}, dtype=torch.qint8)
    return found


def qint8() -> dict[str, Tensor]:
    packed = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)
    return Net().state_dict() | {"fc1.weight": packed}


def per_channel() -> dict[str, Tensor]:
    scales, zeros = torch.ones(4), torch.zeros(4, dtype=torch.int64)
    return {"fc1.weight": torch.quantize_per_channel(torch.randn(4, 4), scales, zeros, 0, torch.qint8)}


def named(**others: Tensor) -> dict[str, Tensor]:
    """The weights of ``fc1`` replaced; ``__`` stands for a dot."""
    kept = {name: value for name, value in Net().state_dict().items() if name != "fc1.weight"}
    return kept | {name.replace("__", "."): value for name, value in others.items()}


int8 = torch.ones(4, 4, dtype=torch.int8)
STATES: dict[str, Callable[[], Any]] = {
    "dynamic": lambda: dynamic().state_dict(),
    "wrapped": lambda: {"model": dynamic().state_dict(), "epoch": 3},
    "lstm": lambda: dynamic(nn.Sequential(nn.LSTM(4, 4)), nn.LSTM).state_dict(),
    "qint8": qint8,
    "per channel": per_channel,
    "int8": lambda: named(fc1__weight=int8),
    "bitsandbytes 8": lambda: named(fc1__weight=int8, fc1__SCB=torch.ones(4), fc1__weight_format=torch.tensor(0)),
    "bitsandbytes 4": lambda: named(fc1__weight=int8[:2], fc1__weight__absmax=torch.ones(1)),
    "GPTQ": lambda: named(fc1__qweight=int8.int(), fc1__qzeros=int8.int(), fc1__scales=torch.ones(4)),
    "HQQ": lambda: named(fc1__W_q=int8),
    "compressed": lambda: named(fc1__weight_packed=int8, fc1__weight_scale=torch.ones(4)),
    "scaled float8": lambda: named(
        fc1__weight=torch.ones(4, 4).to(torch.float8_e4m3fn), fc1__weight_scale=torch.ones(4)
    ),
}


@pytest.mark.parametrize(
    "how", [{"arch": Net}, {"activation": "tanh"}, {"arch": dynamic}], ids=["arch", "chain", "int8"]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("case", STATES)
def test_state_dicts(case: str, form: str, how: Any, tmp_path: Path) -> None:
    state, path = STATES[case](), tmp_path / "m"
    if form != "safetensors":
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    elif all(isinstance(value, Tensor) and not value.is_quantized for value in state.values()):
        save_file(state, path)
    else:
        pytest.skip("safetensors does not hold it")
    if case == "int8" and "activation" in how:
        pytest.skip("a chain of whole numbers is refused as such")
    with pytest.raises(RefusedError) as caught:
        jaccli.load_model(path, **how)
    if case != "int8" or how["arch"] is Net:
        assert "int8 kernels have no derivative" in caught.value.expected
        assert "float checkpoint" in caught.value.remedy


def test_the_float_weights_beside_them(tmp_path: Path) -> None:
    state = Net().state_dict()
    torch.save({"model_int8": dynamic().state_dict(), "model": state}, tmp_path / "m")
    assert torch.equal(jaccli.load_model(tmp_path / "m", arch=Net).fc1.weight, state["fc1.weight"])  # type: ignore[union-attr,arg-type]
    with pytest.raises(RefusedError, match="no derivative"):
        jaccli.load_model(f"{tmp_path / 'm'}[model_int8]", arch=Net)


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(2, 4))], ids=["script", "trace"]
)
def test_torchscript(make: Any, tmp_path: Path) -> None:
    torch.jit.save(make(dynamic()), str(tmp_path / "m"))
    with pytest.raises(RefusedError, match="no derivative"):
        jaccli.load_model(tmp_path / "m")
    with pytest.raises(UnsupportedError, match="no derivative"):
        jaccli.jacobian(jaccli.load_model(tmp_path / "m", trust=True), torch.randn(2, 4))


class Half(nn.Module):
    """Of whose layers one is packed."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = dynamic(nn.Sequential(nn.Linear(4, 4)))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.packed(x))  # type: ignore[no-any-return]


def test_a_network_in_memory() -> None:
    model, x = Half().eval(), torch.randn(2, 4)
    for given in (model, dynamic()):
        with pytest.raises(UnsupportedError, match=r"'packed\.0'|'fc1'") as caught:
            jaccli.jacobian(given, x)
        assert "no derivative" in str(caught.value)
    found = jaccli.jacobian(model, x, source="packed")
    torch.testing.assert_close(found, model.fc.weight.detach().expand(2, 4, 4))
