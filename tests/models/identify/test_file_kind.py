"""A file is told by its content; what is no model is named, with the remedy."""

from __future__ import annotations

import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jaccli.errors import RefusedError
from jaccli.models.identify.file_kind import sniff

STATE = {"weight": torch.eye(2), "bias": torch.zeros(2)}


def script(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def exported(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/models/model.json", "{}")


def old_exported(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", "")


def legacy_tar(path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("torchscript", script),
        ("exported", exported),
        ("exported", old_exported),
        ("safetensors", lambda path: save_file(STATE, path)),
        ("safetensors", lambda path: save_file({}, path)),
        ("checkpoint", lambda path: torch.save(STATE, path)),
        ("checkpoint", lambda path: torch.save(STATE, path, pickle_protocol=4)),
        ("checkpoint", lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False)),
        ("checkpoint", legacy_tar),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.txt", "x"])
def test_the_kind_is_told_by_content_and_not_by_name(tmp_path, kind, write, name):
    path = tmp_path / name
    write(str(path))
    assert sniff(path) == kind


def onnx(producer: bytes) -> bytes:
    graph = b"\x0a\x00" * 40
    return b"\x08\x09" + b"\x12" + bytes([len(producer)]) + producer + b"\x3a" + bytes([len(graph)]) + graph


NOT_MODELS = {
    "empty": (b"", "an empty file"),
    "html": (
        b"\n<!DOCTYPE html><html><body>404</body></html>",
        "HTML page saved under this name: download failed?",
    ),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    "json": (b'{"a": 1}', "JSON"),
    "csv": (b"1.0,2.0\n3.0,4.0\n", "CSV"),
    "text": ("Grüße\n".encode(), "a text file"),
    "python": (b"import torch\n", "file.py:callable"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{}", "an npy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "Keras"),
    "gguf": (b"GGUF\x03\0\0\0", "GGUF"),
    "onnx": (onnx(b"pytorch"), "ONNX"),
    "savedmodel": (b"\x08\x01\x12\xe4\x10", "SavedModel"),
    "tflite": (b"\x1c\0\0\0TFL3\0\0", "Lite"),
    "gzip": (b"\x1f\x8b\x08\0", "gzip"),
    "noise": (bytes(range(200, 256)) * 4, "no known format"),
    "zip": (b"PK\x03\x04 and nothing more", "cut short"),
    "pickle": (b"\x80\x02}q\x00(X\x01\x00\x00\x00", "cut short"),
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_what_is_no_model_is_named(tmp_path, name):
    data, said = NOT_MODELS[name]
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    with pytest.raises(RefusedError) as caught:
        sniff(path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert caught.value.exit_code == 3


def test_an_npz_is_an_input_and_not_a_model(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(RefusedError, match="an npz file of arrays: an input"):
        sniff(tmp_path / "x.npz")


def test_a_packed_model_names_the_file_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("weights/net.ckpt", b"")
    with pytest.raises(RefusedError, match=r"unzip it and give 'weights/net\.ckpt'"):
        sniff(tmp_path / "m.zip")
    with tarfile.open(tmp_path / "m.nemo", "w") as archive:
        archive.addfile(tarfile.TarInfo("model_weights.ckpt"))
    with pytest.raises(RefusedError, match=r"model_weights\.ckpt"):
        sniff(tmp_path / "m.nemo")


def test_a_missing_file_answers_with_the_near_names(tmp_path):
    save_file(STATE, tmp_path / "resnet18.safetensors")
    with pytest.raises(RefusedError, match=r"no such file.*\n.*\nnear that name: 'resnet18\.safetensors'"):
        sniff(tmp_path / "resnet81.safetensors")
    with pytest.raises(RefusedError, match="no such file"):
        sniff(tmp_path / "nowhere" / "m.pt")


def test_a_folder_names_the_models_inside(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(RefusedError, match=r"a folder.*\n.*\n.*'model\.safetensors'"):
        sniff(tmp_path)


@pytest.mark.parametrize("keep", [9, 60, -1])
def test_truncated_safetensors(tmp_path, keep):
    save_file(STATE, tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(whole[:keep])
    with pytest.raises(RefusedError, match="safetensors file that is cut short"):
        sniff(tmp_path / "m")


def test_a_safetensors_header_of_absurd_length_is_not_read(tmp_path):
    (tmp_path / "m").write_bytes(struct.pack("<Q", 90_000_000) + b"{" + b" " * 50)
    with pytest.raises(RefusedError, match="cut short"):
        sniff(tmp_path / "m")


@pytest.mark.parametrize("write", [script, lambda path: torch.save(STATE, path)])
def test_truncated_archives(tmp_path, write):
    write(str(tmp_path / "m.pt"))
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RefusedError, match="zip archive that is cut short"):
        sniff(tmp_path / "m.pt")


def test_a_name_cannot_steer_the_terminal(tmp_path):
    with pytest.raises(RefusedError) as caught:
        sniff(tmp_path / "a\x1b[31m\nb.pt")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_neither_sniffing_nor_specs_import_torch(tmp_path):
    torch.save(STATE, tmp_path / "m.pt")
    code = (
        "import sys; from pathlib import Path; import jaccli.models.load, jaccli.models.identify.import_spec;"
        "from jaccli.models.identify.file_kind import sniff; sniff(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pt")], cwd=Path.cwd(), check=False)
    assert ran.returncode == 0
