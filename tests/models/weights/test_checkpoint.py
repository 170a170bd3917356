"""Weights come out of checkpoints as people have them, and nothing in a file is ever run."""

from __future__ import annotations

import collections
import contextlib
import enum
import io
import os
import pathlib
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jaccli.errors import JaccliNote, RefusedError, UsageError
from jaccli.models.weights.contents import read_contents, without_data
from jaccli.models.weights.load_state_dict import load_into

ZIP = {}
LEGACY = {"_use_new_zipfile_serialization": False}
PROTOCOL_4 = {"pickle_protocol": 4}
FORMS = pytest.mark.parametrize("form", [ZIP, LEGACY, PROTOCOL_4, LEGACY | PROTOCOL_4])


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.fc2 = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc2(self.norm(self.fc1(x)))


class HyperParameters:
    def __init__(self) -> None:
        self.width, self.path, self.kind = 4, pathlib.Path("runs"), Mode.TRAIN


class AttributeDict(dict):
    pass


class Mode(enum.Enum):
    TRAIN = 1


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return Net().state_dict()


def same(a, b) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def read(path: Path, kind: str = "checkpoint", *, trust: bool = False):
    contents = read_contents(path, kind, trust=trust)
    chosen, notes = contents.select(None, None)
    return (contents.state(chosen) if chosen.module is None else chosen.module), notes


@FORMS
def test_values_are_those_that_were_saved(tmp_path, form):
    base = torch.arange(24, dtype=torch.float64)
    tensors = {
        "view": base[3:15].view(3, 4).t(),
        "half": torch.randn(5).to(torch.bfloat16),
        "count": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "none": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "repeated": torch.tensor([2.0]).expand(5),
    }
    torch.save(tensors, tmp_path / "m", **form)
    found, notes = read(tmp_path / "m")
    assert same(found, tensors)
    assert notes == []


@FORMS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "best": torch.tensor(0.9)},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda s: {"model": {"params_ema": state(1), "params": s}},
        lambda s: {"whatever": s},
        lambda s: {"my_net": s, "optimizer": {"m": torch.ones(2)}, "epoch": 1},
        lambda s: AttributeDict(net=AttributeDict(s)),
        lambda s: collections.defaultdict(dict, {"weights": s}),
    ],
)
def test_wrappers_are_undone(tmp_path, form, wrap):
    torch.save(wrap(state()), tmp_path / "m", **form)
    assert same(read(tmp_path / "m")[0], state())


def test_the_plain_weights_are_taken_before_their_average_and_told(tmp_path):
    torch.save({"params_ema": state(1), "params": state(0)}, tmp_path / "m")
    found, notes = read(tmp_path / "m")
    assert same(found, state(0))
    assert any("params" in text and "not params_ema" in text for text in notes)


def test_several_state_dicts_without_a_usual_name_are_refused(tmp_path):
    torch.save({"left": state(0), "right": state(1)}, tmp_path / "m")
    with pytest.raises(UsageError, match="several state dicts that can be meant: 'left', 'right'"):
        read(tmp_path / "m")


@FORMS
def test_a_lightning_checkpoint_with_objects_of_any_library(tmp_path, form):
    checkpoint = {
        "epoch": 2,
        "pytorch-lightning_version": "1.5.0",
        "state_dict": {f"model.{name}": value for name, value in state().items()},
        "hyper_parameters": AttributeDict(opt=HyperParameters(), lr=np.float64(0.1), mode=Mode.TRAIN),
        "callbacks": {HyperParameters: {"best": np.arange(3.0)}, "when": {pathlib.Path("a")}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    }
    torch.save(checkpoint, tmp_path / "m", **form)
    found, notes = read(tmp_path / "m")
    assert any("AttributeDict" in text for text in notes)
    with pytest.warns(JaccliNote, match="prefix 'model.' was taken off"):
        net = load_into(Net(), found, tmp_path / "m")
    assert same(net.state_dict(), state())


def test_a_plain_pickle_of_arrays(tmp_path):
    arrays = {name: value.numpy() for name, value in state().items()}
    arrays["fortran"] = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    for protocol in (2, 4, 5):
        (tmp_path / "m").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol))
        found, _ = read(tmp_path / "m")
        assert all(np.array_equal(found[name].numpy(), arrays[name]) for name in arrays)


def test_a_plain_pickle_of_tensors(tmp_path):
    (tmp_path / "m").write_bytes(pickle.dumps(state()))
    assert same(read(tmp_path / "m")[0], state())


def test_safetensors(tmp_path):
    save_file(state(), tmp_path / "m")
    tensors, _ = read(tmp_path / "m", "safetensors")
    assert same({name: tensors[name] for name in state()}, state())


# ---- hostile and damaged files


class Attack:
    """Runs a command that leaves ``marker`` behind, if anything calls it."""

    def __init__(self, how, marker: Path) -> None:
        self.how, self.marker = how, str(marker)

    def __reduce__(self):
        return {
            "system": (os.system, (f"touch {self.marker}",)),
            "eval": (eval, (f"open({self.marker!r}, 'w')",)),
            "open": (io.open, (self.marker, "w")),
            "path": (pathlib.Path.touch, (pathlib.Path(self.marker),)),
            "getattr": (getattr, (pathlib.Path(self.marker), "touch")),
            "numpy": (np.save, (self.marker, 1)),
            "torch": (torch.save, (1, self.marker)),
            "hub": (torch.hub.load_state_dict_from_url, ("file:///nowhere",)),
        }[self.how]


HOW = ["system", "eval", "open", "path", "getattr", "numpy", "torch", "hub"]


@FORMS
@pytest.mark.parametrize("how", HOW)
def test_a_pickle_is_never_executed(tmp_path, form, how):
    marker = tmp_path / "marker"
    torch.save({"state_dict": state(), "x": Attack(how, marker)}, tmp_path / "m", **form)
    if how in ("system", "eval", "open"):
        with pytest.raises(RefusedError, match=r"asks to run '(posix\.system|builtins\.eval|_?io\.open)'"):
            read(tmp_path / "m")
    else:
        found, notes = read(tmp_path / "m")
        assert same(found, state())
        assert notes
    assert not list(tmp_path.glob("marker*"))


@pytest.mark.parametrize("how", HOW)
def test_an_attack_alone_is_refused_and_named(tmp_path, how):
    (tmp_path / "m").write_bytes(pickle.dumps(Attack(how, tmp_path / "marker")))
    with pytest.raises(RefusedError):
        read(tmp_path / "m")
    assert not (tmp_path / "marker").exists()


def test_raw_opcodes_cannot_reach_anything_either(tmp_path):
    marker = tmp_path / "marker"
    command = f"touch {marker}".encode()
    programs = [
        b"(S'" + command + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nS'" + command + b"'\no.",
        b"\x80\x02ctorch.nn\nModule.__init__.__globals__\n.",
        b"\x80\x02]cbuiltins\nlist\nb.",
        b"\x80\x04\x8c\x06jaccli\x8c\x0aerrors.sys\x93.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
        b"\x80\x02cjaccli.pickles.stand_ins\nRebuild\n(X\x01\x00\x00\x00xX\x01\x00\x00\x00ytR.",
        b"\x80\x02}X\x06\x00\x00\x00__call}R.",
    ]
    for program in programs:
        (tmp_path / "m").write_bytes(b"\x80\x02" + program)
        with pytest.raises(RefusedError):
            read(tmp_path / "m")
    assert not marker.exists()


@FORMS
def test_a_whole_module_is_refused_with_its_class_and_the_remedy(tmp_path, form):
    torch.save({"model": Net()}, tmp_path / "m", **form)
    with pytest.raises(RefusedError) as caught:
        read(tmp_path / "m")
    assert "Net" in caught.value.given
    assert "state_dict" in caught.value.remedy
    assert "trust=True" in caught.value.remedy
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_with_trust_a_whole_module_is_that_module(tmp_path, form):
    net = Net()
    torch.save(net, tmp_path / "m", **form)
    module, notes = read(tmp_path / "m", trust=True)
    assert isinstance(module, Net)
    assert same(module.state_dict(), net.state_dict())
    assert any("trust=True" in text for text in notes)


def test_with_trust_a_state_dict_is_read_too(tmp_path):
    torch.save({"state_dict": state(), "hyper_parameters": HyperParameters()}, tmp_path / "m")
    assert same(read(tmp_path / "m", trust=True)[0], state())


def rewritten(path: Path, change, compress: int = zipfile.ZIP_STORED) -> None:
    """The archive again, each record through ``change(name, data)``."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))


def test_a_tensor_of_a_trillion_repeated_elements_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6), "v": torch.ones(1)}, tmp_path / "m")
    with pytest.raises(RefusedError, match="'w' does not fit the data"):
        read(tmp_path / "m")


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, form):
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "m", **form)
    size = b"M" + struct.pack("<H", 1000) + b"\x85"
    larger = b"M" + struct.pack("<H", 1001) + b"\x85"
    if form is ZIP:
        rewritten(tmp_path / "m", lambda name, data: data.replace(size, larger))
    else:
        (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes().replace(size, larger))
    with pytest.raises(RefusedError, match="does not fit the data"):
        read(tmp_path / "m")


def test_a_storage_shorter_than_promised_is_refused(tmp_path):
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "m")
    rewritten(tmp_path / "m", lambda name, data: data[:400] if name.endswith("data/0") else data)
    with pytest.raises(RefusedError, match="longer than its record"):
        read(tmp_path / "m")


def test_compressed_storages_are_not_unpacked(tmp_path):
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "m")
    rewritten(tmp_path / "m", lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "m").stat().st_size < 10**5
    with pytest.raises(RefusedError, match="compressed"):
        read(tmp_path / "m")


def test_records_that_are_not_aligned_are_read_all_the_same(tmp_path):
    torch.save(state(), tmp_path / "m")
    rewritten(tmp_path / "m", lambda name, data: data)
    assert same(read(tmp_path / "m")[0], state())


@pytest.mark.parametrize("index", [5, -1, 10**12])
def test_sparse_tensors_with_bad_indices_are_refused(tmp_path, index):
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, index]]), torch.ones(2), (3,), check_invariants=False)
    torch.save({"w": sparse}, tmp_path / "m")
    with pytest.raises(RefusedError, match="'w' does not fit"):
        read(tmp_path / "m")


def test_sparse_tensors_with_good_indices_are_read(tmp_path):
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    torch.save({"coo": dense.to_sparse(), "csr": dense.to_sparse_csr()}, tmp_path / "m")
    found, _ = read(tmp_path / "m")
    assert torch.equal(found["coo"].to_dense(), dense)
    assert torch.equal(found["csr"].to_dense(), dense)


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_a_file_cut_anywhere_is_refused(tmp_path, form):
    torch.save(state(), tmp_path / "m", **form)
    whole = (tmp_path / "m").read_bytes()
    for cut in range(2, len(whole), max(1, len(whole) // 25)):
        (tmp_path / "m").write_bytes(whole[:cut])
        with pytest.raises(RefusedError):
            read(tmp_path / "m")


def test_flipped_bytes_are_read_or_refused_and_nothing_else(tmp_path):
    torch.save(state(), tmp_path / "m", **LEGACY)
    whole = (tmp_path / "m").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for where in rng.integers(0, 900, size=2):
            data[where] = rng.integers(256)
        (tmp_path / "m").write_bytes(data)
        with contextlib.suppress(RefusedError):
            read(tmp_path / "m")


def test_no_tensors_at_all(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "m")
    with pytest.raises(RefusedError, match="holds no state dict"):
        read(tmp_path / "m")


def test_a_dict_that_holds_itself_is_seen_through_at_once(tmp_path):
    snake: dict = {}
    snake.update({f"k{index}": snake for index in range(500)})
    torch.save(snake, tmp_path / "m")
    with pytest.raises(RefusedError, match="holds no state dict"):
        read(tmp_path / "m")


def test_one_tensor_is_an_input(tmp_path):
    torch.save(torch.ones(3), tmp_path / "m")
    with pytest.raises(RefusedError, match="one tensor without a name: an input"):
        read(tmp_path / "m")


def test_the_tar_format_is_refused_by_name(tmp_path):
    (tmp_path / "m").write_bytes(b"sys_info" + b"\0" * 2000)
    with pytest.raises(RefusedError, match=r"tar format of PyTorch 0\.1"):
        read(tmp_path / "m")


# ---- into the module


def loaded(module: nn.Module, values, match: str | None = None) -> nn.Module:
    if match is None:
        return load_into(module, values, "m.pt")
    with pytest.warns(JaccliNote, match=match):
        return load_into(module, values, "m.pt")


@pytest.mark.parametrize(
    ("rename", "match"),
    [
        (lambda n: n, None),
        (lambda n: "module." + n, "prefix 'module.' was taken off"),
        (lambda n: "_orig_mod." + n, "'_orig_mod.' was taken out"),
        (lambda n: "module._orig_mod." + n, "prefix 'module.' was taken off"),
        (lambda n: n.replace(".", "._orig_mod."), "'_orig_mod.' was taken out"),
        (lambda n: "model.net." + n, "prefix 'model.net.' was taken off"),
        (lambda n: "my_network." + n, "prefix 'my_network.' was taken off"),
    ],
)
def test_prefixes_are_taken_off_and_told(rename, match):
    net = loaded(Net(), {rename(name): value for name, value in state(5).items()}, match)
    assert same(net.state_dict(), state(5))


def test_a_prefix_is_put_on_when_the_model_has_it():
    net = loaded(nn.ModuleDict({"net": Net()}), state(5), "prefix 'net.' was put before")
    assert same(net["net"].state_dict(), state(5))


def test_of_a_student_and_a_teacher_neither_is_guessed():
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in state().items()}
    with pytest.raises(
        UsageError, match=r"several .*: 'student', 'teacher'\nexpected MODEL\[KEY\], as 'm\.pt\[student\]'"
    ):
        load_into(Net(), both, "m.pt")


def test_extra_names_are_loaded_past_with_a_note():
    net = loaded(Net(), state(5) | {"loss.weight": torch.ones(2)}, r"loaded past 1 names.*'loss\.weight'")
    assert same(net.state_dict(), state(5))


def test_missing_names_are_refused_with_the_nearest():
    values = {name.replace("fc1", "fc_1"): value for name, value in state().items()}
    with pytest.raises(RefusedError) as caught:
        load_into(Net(), values, "m.pt")
    assert "lacks 2 of the model's 9 tensors: 'fc1.weight', 'fc1.bias'" in caught.value.given
    assert "'fc_1.weight'" in caught.value.expected


def test_another_architecture_is_refused_with_both_shapes():
    with pytest.raises(RefusedError, match=r"'fc1\.weight' has shape \(4, 3\)\nexpected \(5, 3\); 6 more differ"):
        load_into(Net(5), state(), "m.pt")


def test_counters_that_old_files_lack_are_harmless():
    values = {name: value for name, value in state(5).items() if "num_batches" not in name}
    net = loaded(Net(), values, "num_batches_tracked is missing")
    assert torch.equal(net.fc1.weight, values["fc1.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_takes_the_one_dtype_of_the_file(dtype):
    values = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state(5).items()}
    net = loaded(Net(), values, f"computes in {str(dtype)[6:]}")
    assert same(net.state_dict(), values)


def test_mixed_dtypes_are_converted_to_the_models_own():
    values = state(5) | {"fc1.weight": state(5)["fc1.weight"].double()}
    net = loaded(Net(), values, "converted to the model's own dtype")
    assert net.fc1.weight.dtype == torch.float32


def test_integers_for_weights_are_refused():
    values = state() | {"fc1.weight": torch.ones(4, 3, dtype=torch.int8)}
    with pytest.raises(RefusedError, match=r"holds int8 under 'fc1\.weight': a quantised model"):
        load_into(Net(), values, "m.pt")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_name_of_a_tied_weight_is_enough(kept, dtype):
    values = {kept: torch.randn(5, 3).to(dtype)}
    net = load_into(Tied(), values, "m.pt")
    assert net.head.weight is net.embed.weight
    assert torch.equal(net.head.weight, values[kept])


class Scale(nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(value)


@pytest.mark.parametrize(("here", "there"), [((), (1,)), ((1,), ())])
def test_a_single_number_may_have_gained_or_lost_its_dimension(here, there):
    net = load_into(Scale(torch.zeros(there)), {"scale": torch.full(here, 3.0)}, "m.pt")
    assert net.scale.shape == there
    assert net.scale.item() == 3.0


def test_lazy_layers_take_the_shapes_of_the_file():
    source = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net = load_into(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2)), source.state_dict(), "m.pt")
    x = torch.randn(5, 3)
    assert torch.equal(net(x), source(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("old_file", [True, False])
def test_old_and_new_normalisation_names(norm, old_file):
    old, new = getattr(nn.utils, norm), getattr(nn.utils.parametrizations, norm)
    torch.manual_seed(1)
    source = (old if old_file else new)(nn.Linear(3, 4)).eval()
    target = (new if old_file else old)(nn.Linear(3, 4)).eval()
    values = source.state_dict()
    x = torch.randn(2, 3)
    with pytest.warns(JaccliNote, match="names of weight or spectral normalisation"):
        load_into(target, values, "m.pt")
    assert torch.allclose(target(x), source(x), atol=1e-6)


def test_a_model_loaded_from_a_file_outlives_it(tmp_path):
    torch.save(state(5), tmp_path / "m")
    net = load_into(Net(), read(tmp_path / "m")[0], "m")
    with (tmp_path / "m").open("r+b") as file:
        file.write(b"\xff" * (tmp_path / "m").stat().st_size)
    assert same(net.state_dict(), state(5))


def test_the_description_of_an_array_has_its_dtype(tmp_path):
    arrays = {"w": np.zeros((2, 3), np.float32), "at": np.zeros(4, np.int32), "mask": np.zeros(2, bool)}
    torch.save(arrays, tmp_path / "m")
    (candidate,) = read_contents(tmp_path / "m", "checkpoint").candidates(None)
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in without_data(candidate.entries).items()}
    assert kinds == {"w": (torch.float32, (2, 3)), "at": (torch.int32, (4,)), "mask": (torch.bool, (2,))}
