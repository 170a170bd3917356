"""Archives from strangers: nothing in them runs, and what does not fit is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jaccli.errors import JaccliError, RefusedError, UnsupportedError
from jaccli.models.exported.load import load_exported

LEAF = {"type": None, "context": None, "children_spec": []}
IN_SPEC = [
    1,
    {
        "type": "builtins.tuple",
        "context": "null",
        "children_spec": [
            {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF]},
            {"type": "builtins.dict", "context": "[]", "children_spec": []},
        ],
    },
]


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def meta(sizes: list[int], strides: list[int], offset: int = 0, dtype: int = 7, layout: int = 7) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "sizes": [{"as_int": size} for size in sizes],
        "requires_grad": True,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": offset},
        "layout": layout,
    }


def node(target: str, inputs: list[tuple[str, dict[str, Any]]], output: str = "y") -> dict[str, Any]:
    arguments = [{"name": name, "arg": value, "kind": 1} for name, value in inputs]
    stack = "L__self__,,net.Net;L__self__fc,fc,torch.nn.modules.linear.Linear"
    return {
        "target": target,
        "inputs": arguments,
        "outputs": [tensor(output)],
        "metadata": {"nn_module_stack": stack},
    }


EARLY = node("torch.ops.aten.clone.default", [("self", tensor("y"))], "z")
LINEAR = node("torch.ops.aten.linear.default", [("input", tensor("x")), ("weight", tensor("w"))])


class Made:
    """``x @ w.T`` with ``w = [[1, 2], [3, 4]]`` as an archive, to be spoilt."""

    def __init__(self) -> None:
        free = {"as_expr": {"expr_str": "Symbol('s0', integer=True)", "hint": {"as_int": 3}}}
        values = {"x": {**meta([3, 2], [2, 1]), "sizes": [free, {"as_int": 2}]}, "w": meta([2, 2], [2, 1])}
        graph = {
            "inputs": [tensor("w"), tensor("x")],
            "outputs": [tensor("y")],
            "nodes": [copy.deepcopy(LINEAR)],
            "tensor_values": values,
            "sym_int_values": {},
            "sym_bool_values": {},
        }
        specs = [
            {"parameter": {"arg": {"name": "w"}, "parameter_name": "fc.weight"}},
            {"user_input": {"arg": tensor("x")}},
        ]
        call = {
            "inputs": [],
            "outputs": [],
            "in_spec": json.dumps(IN_SPEC),
            "out_spec": json.dumps([1, LEAF]),
        }
        self.graph, self.call = graph, call
        self.program: dict[str, Any] = {
            "graph_module": {
                "graph": graph,
                "signature": {"input_specs": specs, "output_specs": [{"user_output": {"arg": tensor("y")}}]},
                "module_call_graph": [{"fqn": "", "signature": call}, {"fqn": "fc", "signature": None}],
            },
            "range_constraints": {},
            "schema_version": {"major": 8, "minor": 20},
            "torch_version": "2.13.0",
            "guards_code": [],
        }
        payload = {"path_name": "weight_0", "is_param": True, "use_pickle": False}
        self.weights = {"fc.weight": {**payload, "tensor_meta": meta([2, 2], [2, 1])}}
        self.constants: dict[str, Any] = {}
        self.files: dict[str, bytes] = {"data/weights/weight_0": struct.pack("<4f", 1, 2, 3, 4)}

    def write(self, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
        files = {
            "archive_format": b"pt2",
            "byteorder": b"little",
            "models/model.json": json.dumps(self.program).encode(),
            "data/weights/model_weights_config.json": json.dumps({"config": self.weights}).encode(),
            "data/constants/model_constants_config.json": json.dumps({"config": self.constants}).encode(),
            **self.files,
        }
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(f"m/{name}", data)
        return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.pt2"


class Bomb:
    """A pickle whose reading makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def refused(path: Path, match: str | None = None, kind: type[JaccliError] = RefusedError) -> None:
    with pytest.raises(kind, match=match) as caught:
        load_exported(path)
    lines = str(caught.value).split("\n")
    assert len(lines) <= 3
    assert max(map(len, lines)) < 200
    assert "weights_only" not in str(caught.value)
    assert all(line.isprintable() for line in lines)


def test_a_clean_archive(path: Path) -> None:
    model = load_exported(Made().write(path))
    torch.testing.assert_close(model(torch.eye(2)), torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    assert list(dict(model.named_parameters())) == ["fc.weight"]


def test_a_compressed_archive_is_read_too(path: Path) -> None:
    load_exported(Made().write(path, zipfile.ZIP_DEFLATED))


def test_pickles_are_not_executed(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    made = Made()
    made.files["data/sample_inputs/model.pt"] = pickle.dumps(Bomb(witness))
    load_exported(made.write(path))
    assert not witness.exists()
    made.files["data/constants/custom_obj_0"] = pickle.dumps(Bomb(witness))
    made.constants["obj"] = {
        "path_name": "custom_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    refused(made.write(path), "pickled object")
    made.constants["obj"]["tensor_meta"] = meta([1], [1])
    refused(made.write(path), "more than tensors|asks to run")
    made = Made()
    made.weights["fc.weight"]["use_pickle"] = True
    made.files["data/weights/weight_0"] = pickle.dumps(Bomb(witness))
    refused(made.write(path), "more than tensors|asks to run")
    assert not witness.exists()


def test_a_clean_pickled_tensor_is_read(path: Path, tmp_path: Path) -> None:
    made = Made()
    made.weights["fc.weight"]["use_pickle"] = True
    torch.save(torch.ones(2, 2), tmp_path / "w")
    made.files["data/weights/weight_0"] = (tmp_path / "w").read_bytes()
    assert load_exported(made.write(path))(torch.eye(2)).sum() == 4


def test_text_is_not_evaluated(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    code = f"__import__('os').mkdir({str(witness)!r})"
    made = Made()
    made.program["guards_code"] = [code]
    made.program["range_constraints"] = {code: {"min_val": 0, "max_val": 9}}
    made.graph["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = code
    made.graph["sym_int_values"]["s"] = {"as_expr": {"expr_str": code, "hint": None}}
    model = load_exported(made.write(path))
    assert model(torch.ones(5, 2)).shape == (5, 2)
    assert not witness.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten._reshape_alias.default",
        "torch.ops.load_library",
        "torch.hub.load",
        "torch.load",
        "os.system",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.__loader__.load_module",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.linear.__class__",
        "torch.ops.higher_order.print",
        "torch.ops.higher_order.flex_attention",
        "torch.ops.mine.operator.default",
        "torch.ops.aten.\x1b[31mred.default",
    ],
)
def test_operators_off_the_list(path: Path, target: str) -> None:
    made = Made()
    made.graph["nodes"][0]["target"] = target
    refused(made.write(path), "uses the operator", UnsupportedError if "higher_order" in target else RefusedError)


@pytest.mark.parametrize(
    ("described", "why"),
    [
        (meta([2, 3], [3, 1]), "needs 24 bytes and its storage has 16"),
        (meta([2, 2], [2, 1], offset=1), "needs 20 bytes and its storage has 16"),
        (meta([10**6, 10**6], [0, 0]), "claims 1000000000000 elements"),
        (meta([2, 2], [-2, 1]), "no sense"),
        (meta([-1, 2], [2, 1]), "no sense"),
        (meta([2], [2, 1]), "no sense"),
        (meta([2, 2], [2, 1], layout=1), "not strided"),
        (meta([2, 2], [2, 1], dtype=99), "KeyError"),
        (meta([2, 2], [2, 1], dtype=8), "needs 32 bytes"),
    ],
)
def test_tensors_that_do_not_fit_their_bytes(path: Path, described: dict[str, Any], why: str) -> None:
    made = Made()
    made.weights["fc.weight"]["tensor_meta"] = described
    refused(made.write(path), why)


def test_pickled_tensors_that_do_not_fit(path: Path, tmp_path: Path) -> None:
    made = Made()
    made.weights["fc.weight"]["use_pickle"] = True
    for bad in (torch.ones(1).expand(10**6, 10**6), torch.ones(2, 2).to_sparse()):
        torch.save(bad, tmp_path / "w")
        made.files["data/weights/weight_0"] = (tmp_path / "w").read_bytes()
        refused(made.write(path), "does not fit|no dense tensor")


def test_a_deflated_bomb_is_not_unpacked(path: Path) -> None:
    made = Made()
    made.files["data/weights/weight_0"] = bytes(80 << 20)
    refused(made.write(path, zipfile.ZIP_DEFLATED), "unpacks to 83886080 bytes")


def test_weights_that_share_bytes_share_memory(path: Path) -> None:
    made = Made()
    made.weights["tied"] = {**made.weights["fc.weight"], "tensor_meta": meta([2], [1], offset=2)}
    made.graph["inputs"].insert(0, tensor("b"))
    spec = {"parameter": {"arg": {"name": "b"}, "parameter_name": "tied"}}
    made.program["graph_module"]["signature"]["input_specs"].insert(0, spec)
    model = load_exported(made.write(path))
    assert model.tied.tolist() == [3, 4]
    assert model.tied.untyped_storage().data_ptr() == model.fc.weight.untyped_storage().data_ptr()


SPOILERS: dict[str, Callable[[Made], object]] = {
    "no graph": lambda made: made.program.pop("graph_module"),
    "graph is a list": lambda made: made.program["graph_module"].update(graph=[1]),
    "program is a number": lambda made: setattr(made, "program", 3),
    "node without inputs": lambda made: made.graph["nodes"][0].pop("inputs"),
    "unknown argument kind": lambda made: made.graph["nodes"][0]["inputs"][0].update(arg={"as_evil": 1}),
    "missing argument": lambda made: made.graph["nodes"][0]["inputs"].pop(),
    "no weights": lambda made: made.weights.clear(),
    "weight outside": lambda made: made.weights["fc.weight"].update(path_name="../secret"),
    "weight absent": lambda made: made.weights["fc.weight"].update(path_name="weight_9"),
    "bad stack": lambda made: made.graph["nodes"][0]["metadata"].update(nn_module_stack="a;b"),
    "bad tree": lambda made: made.program["graph_module"]["module_call_graph"][0]["signature"].update(out_spec="[["),
    "big endian": lambda made: made.files.update(byteorder=b"big"),
    "two inputs": lambda made: made.program["graph_module"]["signature"]["input_specs"].pop(),
    "value read before it is made": lambda made: made.graph["nodes"].insert(0, EARLY),
    "value made twice": lambda made: made.graph["nodes"].append(made.graph["nodes"][0]),
    "undefined value": lambda made: made.graph.update(outputs=[tensor("nowhere")]),
    "name of a method": lambda made: rename(made, "forward"),
    "name of nothing": lambda made: rename(made, "a..b"),
}


def rename(made: Made, name: str) -> None:
    made.weights[name] = made.weights.pop("fc.weight")
    made.program["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = name


@pytest.mark.parametrize("what", SPOILERS)
def test_damaged_programs(path: Path, what: str) -> None:
    made = Made()
    SPOILERS[what](made)
    refused(made.write(path))


def test_damaged_files(path: Path, tmp_path: Path) -> None:
    whole = Made().write(path).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        refused(path, "damaged|cut short")
    spoilt = whole.replace(struct.pack("<4f", 1, 2, 3, 4), struct.pack("<4f", 1, 2, 3, 5))
    path.write_bytes(spoilt)
    refused(path, "BadZipFile")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    refused(path, "without an exported program")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data/aotinductor/model/a.so", b"\x7fELF")
    refused(path, "AOTInductor")


def test_the_layout_before_torch_2_8(path: Path, tmp_path: Path) -> None:
    made = Made()
    torch.save({"fc.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, tmp_path / "state")
    torch.save({}, tmp_path / "constants")

    def write(state: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("version", "8.4")
            archive.writestr("serialized_exported_program.json", json.dumps(made.program))
            archive.writestr("serialized_state_dict.pt", state)
            archive.writestr("serialized_constants.pt", (tmp_path / "constants").read_bytes())
            archive.writestr("serialized_example_inputs.pt", pickle.dumps(Bomb(tmp_path / "witness")))

    write((tmp_path / "state").read_bytes())
    torch.testing.assert_close(load_exported(path)(torch.eye(2)), torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    write(pickle.dumps(Bomb(tmp_path / "witness")))
    refused(path, "more than tensors|asks to run")
    assert not (tmp_path / "witness").exists()


def test_huge_powers_are_not_computed(path: Path) -> None:
    made = Made()
    power = node("_operator.pow", [("a", {"as_int": 10}), ("b", {"as_int": 10**9})], "n")
    power["outputs"] = [{"as_sym_int": {"as_name": "n"}}]
    made.graph["nodes"].insert(0, power)
    model = load_exported(made.write(path))
    with pytest.raises(UnsupportedError, match="1000000000"):
        model(torch.ones(1, 2))


def test_only_trust_allows_operators_of_others(path: Path) -> None:
    library = torch.library.Library("jaccli_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")
    made = Made()
    made.graph["nodes"] = [node("torch.ops.jaccli_test.twice.default", [("x", tensor("x"))])]
    refused(made.write(path), "uses the operator")
    assert load_exported(path, trust=True)(torch.ones(1, 2)).tolist() == [[2, 2]]
