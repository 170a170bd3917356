"""A file appears whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaccli.errors import ResourceError, UsageError
from jaccli.sinks.atomic import atomic_file, atomic_folder, open_output


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writes beyond ``limit`` bytes fail, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_written_whole_and_with_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with atomic_file(str(path), force=False) as handle:
        handle.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    other = tmp_path / "y"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, BrokenPipeError])
@pytest.mark.parametrize("existed", [False, True])
def test_nothing_on_failure(error: type[BaseException], existed: bool, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if existed:
        path.write_bytes(b"old")

    def work() -> None:
        with atomic_file(str(path), force=True) as handle:
            handle.write(b"new" * 10000)
            raise error

    with pytest.raises(error):
        work()
    assert os.listdir(tmp_path) == (["x"] if existed else [])
    assert not existed or path.read_bytes() == b"old"


def test_force_keeps_links_and_permissions(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("real")
    with atomic_file(str(link), force=True) as handle:
        handle.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(UsageError, match="--force"), atomic_file(str(path), force=False):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["x"]


def test_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    error = pytest.raises(ResourceError, match="nothing was written")
    with full_disk(5000), error, atomic_file(str(path), force=True) as handle:
        handle.write(b"x" * 10000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(ResourceError, match="No space"), open_output("/dev/full", force=False) as handle:
        handle.write(b"x")


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(str(tmp_path / "x"), force=False):
        (tmp_path / "nowhere").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time\nfrom jaccli.sinks.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1], False) as handle:\n"
        "    handle.write(b'x' * 100000); print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores one, and children inherit that
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        signal.signal(number, before)
        assert process.stdout is not None
        process.stdout.readline()
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with atomic_file(str(tmp_path / "x"), False) as handle:
            os.kill(os.getpid(), signal.SIGHUP)
            handle.write(b"whole")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_folders_too(tmp_path: Path) -> None:
    path = tmp_path / "j.zarr"
    for text in ("old", "new"):
        with atomic_folder(str(path), force=text == "new") as folder:
            Path(folder, "zarr.json").write_text(text)
    with pytest.raises(FileNotFoundError), atomic_folder(str(path), force=True) as folder:
        Path("/nowhere/third").write_text(folder)
    with pytest.raises(UsageError, match="--force"), atomic_folder(str(path), force=False):
        pass
    assert (path / "zarr.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["j.zarr"]
    assert time.time() - path.stat().st_mtime < 60
    assert os.access(path, os.R_OK | os.X_OK)
