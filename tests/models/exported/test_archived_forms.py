"""Forms of arguments and results that only some archives have, against the model that was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jaccli.errors import RefusedError
from jaccli.models.exported.load import load_exported
from jaccli.models.exported.network import ExportedNetwork
from jaccli.models.exported.parse import _output


class Counts(nn.Module):
    """Writes a buffer, takes a number, indexes, splits, and makes a tensor with a layout."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor, power: int) -> tuple[Tensor, ...]:
        self.count.add_(1)
        first, second = x[:, self.order].split([1, 2], dim=1)
        made = torch.zeros(2, layout=torch.strided, dtype=x.dtype)
        values, indices = x.topk(2, dim=1)
        return first + self.count, second**power + made, values, indices


def test_an_archive_does_what_the_model_does(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    exported = torch.export.export(Counts(), (x, 2))
    torch.export.save(exported, tmp_path / "m.pt2")
    expected = Counts()(x, 2)
    model = load_exported(tmp_path / "m.pt2")
    for network in (ExportedNetwork(model), ExportedNetwork(exported)):
        for _ in range(2):
            for result, wanted in zip(network.run((x, 2), {}), expected, strict=True):
                assert torch.equal(result, wanted)
    assert model(x, 2)[0].shape == (4, 1)
    assert model.count.item() == 1
    with pytest.raises(RefusedError, match="exported with"):
        model(x, 3)


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ({"as_tensor": {"name": "a"}}, "a"),
        ({"as_tensors": [{"name": "a"}, {"name": "b"}]}, ("a", "b")),
        ({"as_optional_tensor": {"as_tensor": {"name": "a"}}}, "a"),
        ({"as_optional_tensor": {"as_none": True}}, None),
        ({"as_optional_tensors": [{"as_tensor": {"name": "a"}}, {"as_none": True}]}, ("a", None)),
        ({"as_sym_int": {"as_name": "n"}}, "n"),
        ({"as_sym_ints": [{"as_name": "n"}, {"as_int": 3}]}, ("n", None)),
        ({"as_none": True}, None),
    ],
)
def test_names_of_results(raw: dict[str, Any], names: Any) -> None:
    assert _output(raw) == names
