"""TorchScript's operators on numbers, text and containers, against its own executor: values and types."""

# ruff: noqa: UP006, UP007, UP035, UP045, SIM108, SIM905, RUF005, B905  TorchScript reads the types, and knows few idioms
import math
from enum import Enum
from typing import Any, Dict, List, Optional, Tuple, Union

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaccli.models.torchscript.network import ScriptNetwork
from tests.models.torchscript.test_networks import reloaded


class Color(Enum):
    RED = 1
    BLUE = 2


class Integers(nn.Module):
    def forward(self, x: Tensor) -> Tuple[List[int], List[bool]]:
        a, b = x.size(0), -7
        out = [a + b, a * b, b // 2, b % 3, a - b, abs(b), max(a, b), min(a, b), a & 3, a | 8, a ^ 5, a << 2]
        out += [int(2.9), int(-2.9), int("12"), len("abc"), ord("a"), divmod(7, 3)[0], math.gcd(12, 18)]
        out += [
            math.floor(-2.5),
            math.ceil(2.1),
            sum([1, 2, 3]),
            max([4, 9, 2]),
            min([4, 9, 2]),
            int(x.sum()),
        ]
        items = [3, 1, 2]
        items.append(5)
        items.insert(0, 9)
        items.extend([7, 7])
        items.sort()
        items.reverse()
        out += items
        out += [items.pop(), items.pop(0), items.index(7), items.count(7)]
        items.remove(7)
        out += items[1:3] + items[::-1] + items * 2 + sorted(items)
        del items[1]
        items[0] = 5
        items[-1] += 4
        out += items.copy() + [i * i for i in range(1, 8, 3)] + list(range(5, 0, -2))
        items.clear()
        flags = [
            len(items) == 0,
            3 in [1, 3],
            not True,
            a == 2 and b < 0,
            any([True, False]),
            all([True, False]),
        ]
        flags += [
            [1, 2] == [1, 2],
            [1] != [2],
            "a" < "b",
            math.isnan(float("nan")),
            bool(x.sum() > 0),
            bool(3),
        ]
        flags += [x.dtype == torch.float32, x.is_cuda, x.requires_grad, x.device.type == "cpu", x.dim() == 2]
        flags += [
            torch.jit.is_scripting(),
            "abc".startswith("a"),
            "b" in "abc",
            "1".isdigit(),
            x.is_contiguous(),
        ]
        return out, flags


class Reals(nn.Module):
    def forward(self, x: Tensor) -> List[float]:
        a, b = x.size(0), -7
        out = [a / b, round(2.5), round(3.5), float(a), b / 2.0, 2.5 // 1.0, -2.5 % 2.0, math.sqrt(2.0)]
        out += [math.exp(1.0), math.log(3.0), math.pow(2.0, 3.0), float("2.5"), 2.0**0.5, float(x.sum())]
        out += [float(x.max().item()), math.fmod(-7.0, 3.0), abs(-2.5), max(1.0, 2.0), sum([0.5, 1.5])]
        return out + [math.tanh(0.3), math.atan2(1.0, 2.0), 7 % 2.5]


class Texts(nn.Module):
    def forward(self, x: Tensor) -> Tuple[List[str], List[int]]:
        table = {"a": 1, "b": 2}
        table["c"] = 3
        numbers = [table.get("z", 7), table.pop("a"), table.setdefault("n", 11), len(table)]
        table.update({"q": 4})
        del table["b"]
        numbers += list(table.values())
        out = list(table.keys()) + [k + str(v) for k, v in table.items()] + "a,b,c".split(",")
        out += [
            "-".join(["x", "y"]),
            "aB".upper(),
            " s ".strip(),
            "abc".replace("b", "z"),
            "abc"[1],
            "abcdef"[1:4],
        ]
        out += ["%d-%s" % (3, "k"), "%s" % "one", "{} {}".format(1.5, True), f"{len(out)}:{x.size(0)}"]  # noqa: UP031, UP032
        return out + [str(1.5), str(True), str(3), hex(255), chr(98)], numbers


def triple(x: Tensor, k: int = 3) -> Tensor:
    return x * k


class Flow(nn.Module):
    def early(self, x: Tensor, n: int) -> Tensor:
        for i in range(n):
            if i == 2:
                continue
            if i == 4:
                return x + 100
            j = 0
            while True:
                j += 1
                x = x + j
                if j > i:
                    break
        return x

    def forward(
        self, x: Tensor, mode: str = "a", more: Optional[List[int]] = None, u: Union[int, str] = 3
    ) -> List[Tensor]:
        y = self.early(x, 3) + self.early(x, 9)
        if isinstance(u, int):
            z = triple(x) * u
        else:
            z = triple(x, 5)
        if more is not None:
            z = z + more[0]
        parts: Tuple[Tensor, int, float] = (x, 2, 3.0)
        z = z + parts[1:][0]
        color = Color.RED
        if color == Color.RED:
            z = z + 1
        if mode == "a":
            z = z * 2
        elif mode == "b":
            z = z * 3
        out: List[Tensor] = []
        for a, b in zip([1, 2], [x, y]):
            out.append(b * a)
        for i, e in enumerate(out):
            out[i] = e + i
        return out + [y, z, torch.zeros(x.shape[-1])]


class Tensors(nn.Module):
    def forward(self, x: Tensor) -> List[Tensor]:
        out = [torch.tensor([1, 2]), torch.tensor(3.5), torch.tensor([[1.0], [3.0]]), torch.tensor(True)]
        out += [
            torch.ones([2], dtype=torch.int64),
            torch.arange(0, 6, 2, dtype=x.dtype),
            torch.linspace(0, 1, 4),
        ]
        out += [x[0], x[:, 1], x[..., None], x[x > 0], x[:, [0, 2]], x[torch.tensor([1, 0])], x[-1:, ::2]]
        out += [x.t().contiguous().view(-1), x.expand(3, 2, 4), torch.cat([x, x], 1), x.chunk(2, 1)[1]]
        values, places = x.max(1)
        out += [
            values,
            places,
            x.mean((0, 1)),
            x.clamp(min=0.0),
            torch.where(x > 0, x, -x),
            x.to(torch.float64),
        ]
        out += [
            x.long(),
            x.new_zeros(2),
            x.masked_fill(x > 0, 0.0),
            x.pow(2),
            2**x,
            1 / (x * x + 1),
            x // 0.5,
        ]
        out += [
            x % 0.7,
            torch.einsum("ij,kj->ik", x, x),
            F.pad(x, (1, 0), "constant", 2.0),
            F.one_hot(places, 5),
        ]
        out += [
            F.cross_entropy(x, places),
            torch.topk(x, 2)[0],
            torch.fft.rfft(x).abs(),
            F.layer_norm(x, [4]),
        ]
        y = x.clone()
        y[0] = 1
        y[:, 1] += 2
        y[0, 0] *= 3
        y[y > 2] = 0.5
        rows: List[List[float]] = x.tolist()
        counts: Dict[int, Tensor] = {int(places[0]): y}
        return out + [y, torch.tensor(rows), counts[int(places[0])] + len(counts)]


CASES: list[tuple[type[nn.Module], tuple[Any, ...]]] = [
    (Integers, ()),
    (Reals, ()),
    (Texts, ()),
    (Flow, ()),
    (Flow, ("b", [4], "s")),
    (Tensors, ()),
]


@pytest.mark.parametrize(("module", "extra"), CASES)
@pytest.mark.parametrize("load", [False, True])
def test_operators_do_what_torchscript_does(module: type[nn.Module], extra: Any, load: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    script = torch.jit.script(module())
    want = torch.utils._pytree.tree_leaves(script(x, *extra))
    got = torch.utils._pytree.tree_leaves(ScriptNetwork(reloaded(script) if load else script).run((x, *extra), {}))
    assert [type(g) for g in got] == [type(w) for w in want]
    for g, w in zip(got, want, strict=True):
        if isinstance(w, Tensor):
            torch.testing.assert_close(g, w)
        else:
            assert g == w
