"""Operators that would crash the process are refused, by name or by their arguments; their real uses are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jaccli.errors import RefusedError, ResourceError
from jaccli.models.exported.operators import resolve
from jaccli.models.screening.argument_checks import guarded
from jaccli.models.screening.operator_lists import FUNCTIONS, INTERNALS, LIBRARIES, PRIMS, SCRIPT
from jaccli.models.screening.operator_names import permitted
from jaccli.models.torchscript import item_limits
from jaccli.models.torchscript.natives import ALWAYS, CONTAINERS, SCALARS
from jaccli.models.torchscript.network import ScriptNetwork
from tests.models.expressions import scripted

A = torch.ops.aten
FAR = 100_000_000


DOUBLED: list[Any] = []
for _ in range(40):  # two to the power of so many lists, when they are walked through
    DOUBLED = [DOUBLED, DOUBLED]


@pytest.mark.parametrize(
    "name",
    [
        "_reshape_alias", "_cummax_helper", "_convert_indices_from_csr_to_coo", "_fused_adam_", "_coalesced_",
        "_sparse_coo_tensor_unsafe", "max_pool2d_with_indices_backward", "embedding_dense_backward", "_scaled_mm",
        "segment_reduce", "slow_conv_transpose2d", "mkldnn_rnn_layer", "from_file", "_foreach_add", "_foreach_copy_",
        "_remove_batch_dim", "_make_dual", "set_", "resize_", "quantize_per_tensor", "_nested_tensor_from_mask",
        "_fft_r2c.out", "add.out", "_cslt_compress", "_copy_from", "_sparse_softmax", "_print", "save",
    ],
)  # fmt: skip
def test_internals_are_refused_by_name(name: str) -> None:
    packet = getattr(torch.ops.aten, name.partition(".")[0])
    overloads = [name.partition(".")[2]] if "." in name else packet.overloads()
    for overload in overloads:
        assert not permitted(getattr(packet, overload)._schema, script=True)


@pytest.mark.parametrize(
    "name",
    ["linear", "_convolution", "__and__", "_weight_norm", "_softmax", "_unsafe_index", "relu_", "einsum", "stack",
     "_native_batch_norm_legit_no_training", "_scaled_dot_product_flash_attention_for_cpu", "_conj", "_fft_r2c",
     "_thnn_fused_lstm_cell", "_upsample_bilinear2d_aa", "_cdist_forward", "_embedding_bag", "_ctc_loss", "_trilinear"],
)  # fmt: skip
def test_what_traces_and_exports_hold_is_not(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    assert any(permitted(getattr(packet, overload)._schema) for overload in packet.overloads())


def test_the_lists_name_operators_that_exist() -> None:
    """A name that no torch has would be a slip; some are of a newer or older one."""
    known = {schema.name for schema in torch._C._jit_get_all_schemas()}
    lost = [n for n in FUNCTIONS | LIBRARIES | INTERNALS | SCRIPT if not {f"aten::{n}", f"aten::{n}_"} & known]
    lost += [name for name in PRIMS if f"prims::{name}" not in known]
    assert len(lost) <= 12, lost


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


def lstm(wide: int, hidden: int, batch: int = 2) -> tuple[Any, ...]:
    weights = [ones(4 * 8, wide), ones(4 * 8, hidden), ones(4 * 8), ones(4 * 8)]
    states = [ones(1, batch, 8), ones(1, batch, 8)]
    return (ones(2, 5, 4), states, weights, True, 1, 0.0, False, False, True)


BAD: list[tuple[Any, tuple[Any, ...]]] = [
    (A.native_batch_norm.default, (ones(2, 9), ones(1), ones(1), ones(1), ones(1), False, 0.1, 1e-5)),
    (A._native_batch_norm_legit_no_training.default, (ones(2, 9), None, None, ones(9), ones(1), 0.1, 1e-5)),
    (A._weight_norm.default, (ones(9, 1), ones(1), 0)),
    (A.lstm.input, lstm(4, 1)),
    (A.lstm.input, lstm(4, 8, batch=1)),
    (A._pad_packed_sequence.default, (ones(3, 2), torch.tensor([2, -1]), False, 0.0, 4)),
    (A._pack_padded_sequence.default, (ones(3, 2, 2), torch.tensor([FAR, 1]), False)),
    (A.ctc_loss.IntList, (ones(5, 1, 3), torch.tensor([[FAR, 1, 2]]), [5], [3])),
    (A.fractional_max_pool2d.default, (ones(1, 1, 8, 8), [2, 2], [4, 4], torch.full((1, 1, 2), 1e9))),
    (A.linalg_eigvals.default, (torch.full((3, 3), float("nan")),)),
    (A.sparse_coo_tensor.indices_size, (torch.tensor([[FAR]]), ones(1), [3])),
    (A.scaled_dot_product_attention.default, (ones(1, 1, 9, 8), ones(1, 1, 9, 8), ones(1, 1, 4, 8))),
    (A._batch_norm_with_update.default, (ones(2, 9), ones(1), ones(1), ones(1), ones(1), 0.1, 1e-5)),
    (A._fft_r2c.default, (ones(2, 4), [FAR], 0, True)),
    (A._fft_r2c.default, (ones(2, 4).half(), [1], 0, True)),
    (A._fft_c2c.default, (ones(2, 4).to(torch.complex64), [-1], 0, True)),
    (A._fft_c2c.default, (ones(2, 4).to(torch.complex64), [1, 1], 0, True)),
    (A._fft_c2r.default, (ones(2, 3).to(torch.complex64), [1], 0, FAR)),
    (A._stack.default, ([], FAR)),
    (A.stack.default, ([],)),
    (A._weight_norm_interface.default, (ones(0, 3), ones(0))),
    (A._pdist_forward.default, (ones(0, 3),)),
    (A.linalg_ldl_solve.default, (torch.eye(2), torch.tensor([FAR, 1], dtype=torch.int32), ones(2, 2))),
    (A.lu_solve.default, (ones(2, 2), torch.eye(2), torch.tensor([0, 1], dtype=torch.int32))),
    (A.matrix_power.default, (torch.eye(2), -(1 << 63))),
]


@pytest.mark.parametrize(("op", "args"), BAD, ids=lambda value: str(value) if not isinstance(value, tuple) else "")
def test_arguments_that_crash_are_refused(op: Any, args: tuple[Any, ...]) -> None:
    with pytest.raises(RefusedError, match="would crash"):
        guarded(op)(*args)


GOOD: list[tuple[Any, tuple[Any, ...]]] = [
    (A.native_batch_norm.default, (ones(2, 9), ones(9), None, ones(9), ones(9), False, 0.1, 1e-5)),
    (A._weight_norm.default, (ones(9, 2), ones(9, 1), 0)),
    (A.lstm.input, lstm(4, 8)),
    (A._pad_packed_sequence.default, (ones(3, 2), torch.tensor([2, 1]), False, 0.0, 4)),
    (A._pack_padded_sequence.default, (ones(3, 2, 2), torch.tensor([3, 1]), False)),
    (A.ctc_loss.IntList, (ones(5, 1, 3), torch.tensor([[1, 1, 2]]), [5], [3])),
    (A.linalg_eigvals.default, (torch.eye(3),)),
    (A._fft_r2c.default, (ones(2, 4), [0, 1], 0, True)),
    (A._fft_c2c.default, (ones(2, 4).to(torch.complex64), [1], 2, False)),
    (A._fft_c2r.default, (ones(2, 3).to(torch.complex64), [1], 0, 5)),
    (A.stack.default, ([ones(2), ones(2)], -1)),
    (A._pdist_forward.default, (ones(4, 3),)),
    (A.linalg_lu_solve.default, (torch.eye(2), torch.tensor([1, 2], dtype=torch.int32), ones(2, 2))),
    (A.scaled_dot_product_attention.default, (ones(1, 1, 9, 8), ones(1, 1, 4, 8), ones(1, 1, 4, 8))),
]


@pytest.mark.parametrize(("op", "args"), GOOD, ids=lambda value: str(value) if not isinstance(value, tuple) else "")
def test_arguments_that_fit_give_what_the_operator_gives(op: Any, args: tuple[Any, ...]) -> None:
    torch.testing.assert_close(guarded(op)(*args), op(*args), equal_nan=True)


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    q, none = ones(2, 3, 4), ones(0, 3, 4)
    with pytest.raises(RefusedError, match="would crash"):
        guarded(A._scaled_dot_product_attention_math.default)(q, none, none, enable_gqa=True)


def test_the_smallest_integer_can_be_divided_by_minus_one() -> None:
    lowest = torch.tensor([-(2**63), 7, -7])
    divided = guarded(A.div.Tensor_mode)(lowest, torch.tensor([-1, 2, 2]), rounding_mode="trunc")
    assert divided.tolist() == [-(2**63), 3, -3]
    here = torch.tensor([-(2**31)], dtype=torch.int32)
    assert guarded(A.div_.Scalar_mode)(here, -1, rounding_mode="trunc") is here


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (CONTAINERS["aten::mul"], ([0], 10**10)),
        (SCALARS["aten::mul"], ("a", 10**10)),
        (CONTAINERS["aten::mul_"], ([0], 10**10)),
        (ALWAYS["aten::percentFormat"], ("%9999999999d", 3)),
        (ALWAYS["prim::rangelist"], (10**10,)),
        (ALWAYS["aten::center"], ("a", 10**10, " ")),
        (ALWAYS["aten::zfill"], ("a", 10**10)),
        (ALWAYS["aten::expandtabs"], ("\t", 10**10)),
        (ALWAYS["aten::replace"], ("a" * 10**4, "a", "b" * 10**4, -1)),
        (ALWAYS["aten::join"], ("b" * 10**5, ["a"] * 10**5)),
        (ALWAYS["aten::str"], (DOUBLED,)),
        (ALWAYS["aten::format"], ("{}", DOUBLED)),
        (ALWAYS["aten::percentFormat"], ("%s", DOUBLED)),
        (ALWAYS["aten::__contains__"], ([1], DOUBLED)),
        (SCALARS["aten::eq"], (DOUBLED, [1])),
    ],
)
def test_text_and_lists_do_not_fill_the_memory(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with pytest.raises(Exception, match=r"makes a list or text|refused the input"):
        function(*args)


def test_a_run_makes_so_much_in_all() -> None:
    item_limits.start()
    for _ in range(26):
        CONTAINERS["aten::mul"]([0], 10**7)
    with pytest.raises(ResourceError, match="makes a list or text"):
        CONTAINERS["aten::mul"]([0], 10**7)
    item_limits.start()
    assert ALWAYS["aten::str"]([[1], [1]]) == "[[1], [1]]"


def test_whole_numbers_have_64_bits_as_in_torchscript() -> None:
    assert SCALARS["aten::mul"](2**62, 2) == -(2**63)
    assert SCALARS["aten::mul"](3, -4) == -12
    assert SCALARS["aten::add_"](2**63 - 1, 1) == -(2**63)
    assert ALWAYS["aten::center"]("a", 3, "-") == "-a-"
    assert ALWAYS["aten::percentFormat"]("%s is %d%%", "x", 3) == "x is 3%"


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("_operator.mul", ([0], 10**10)),
        ("_operator.mod", ("%9999999999d", 5)),
        ("_operator.mul", (1 << 100, 1 << 100)),
        ("_operator.pow", (1 << 64, 64)),
    ],
)
def test_exported_arithmetic_stays_small(target: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(Exception, match=r"exported model (computes|raises)"):
        resolve(target)(*args)
    assert resolve("_operator.mul")(6, 7) == 42


def test_exported_operators_are_screened_too() -> None:
    for name in ("_reshape_alias.default", "max_pool2d_with_indices_backward.default", "_fused_adam.default"):
        with pytest.raises(Exception, match="uses the operator"):
            resolve(f"torch.ops.aten.{name}")


@pytest.mark.parametrize("call", ["torch.zeros([2], dtype={})", "x.sum(dtype={})", "torch.softmax(x, 0, dtype={})"])
@pytest.mark.parametrize("number", [-1, 12, 46, 99, 1 << 40])
def test_dtypes_that_stand_for_nothing_are_refused(call: str, number: int) -> None:
    """In a script a dtype is a number, and torch looks it up without a look at its table's size."""
    for given in (f"{number}", f"x.size(0) * 0 + {number}"):  # known when it is compiled, and when it runs
        with pytest.raises(RefusedError, match="dtype"):
            ScriptNetwork(scripted([call.format(given)])).run((ones(2),), {})
