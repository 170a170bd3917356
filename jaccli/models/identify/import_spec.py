"""SPEC, ``package.module:callable`` or ``path/file.py:callable``: the user's own code, which makes a network.

Imports torch only to build one.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jaccli.errors import JaccliError, RefusedError, TimeIsUp, UsageError
from jaccli.runtime.printing import chatter
from jaccli.text.escape import listed, nearest, quote, shortened
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from torch import nn

_DOTTED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_MODULE_SPEC = re.compile(rf"{_DOTTED}:{_DOTTED}")
_FILE_SPEC = re.compile(rf".+\.py:{_DOTTED}", re.DOTALL)
_FORM = "expected package.module:callable or path/file.py:callable"


def is_spec(text: str | os.PathLike[str]) -> bool:
    """Whether a MODEL is a SPEC. If a file has that name, it is the file."""
    if not isinstance(text, str) or os.path.exists(text):
        return False
    return bool(_MODULE_SPEC.fullmatch(text) or _FILE_SPEC.fullmatch(text))


def parse_arch_args(pairs: Sequence[str]) -> dict[str, Any]:
    """``["width=64", "act=relu"]`` → ``{"width": 64, "act": "relu"}``.

    A value is read as JSON, then as a Python literal, and is otherwise the text itself.

    Raises:
        UsageError: not ``name=value``, a name that is no identifier, or one given twice.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            text = worded("{arch_args} {pair} is not name=value", pair=quote(pair))
            raise UsageError(text, "expected a name, = and a value, as width=64")
        if name in arguments:
            raise UsageError(worded("{arch_args:{name}} is given twice", name=name), "", "give it once")
        arguments[name] = _parse_value(value)
    return arguments


def _parse_value(text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return ast.literal_eval(text)
    return text


def resolve(spec: str) -> Any:
    """The object that a SPEC names; its module is imported, with prints sent to standard error.

    Raises:
        UsageError: no such module, file or attribute, or not a SPEC.
        RefusedError: the code raised when it was imported.
    """
    if not (_MODULE_SPEC.fullmatch(spec) or _FILE_SPEC.fullmatch(spec)):
        raise UsageError(f"{quote(spec)} is not the name of a callable", _FORM)
    place, _, attribute = spec.rpartition(":")
    with _users_code(place):
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    value: Any = module
    for name in attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            near = nearest(name, _public(value), cutoff=0.4) or _public(value)
            owner = place if value is module else getattr(value, "__name__", type(value).__name__)
            raise UsageError(
                f"{quote(owner)} has no {quote(name)}",
                f"it has {listed(near, 5)}" if near else "it defines nothing",
                "name a class or function that makes the network",
            ) from None
    return value


def _public(owner: Any) -> list[str]:
    """Public attributes that are no modules; those that the owner defines itself come first."""
    names = [name for name in dir(owner) if not name.startswith("_")]
    owner_name = getattr(owner, "__name__", None)
    names = [name for name in names if not isinstance(getattr(owner, name, None), ModuleType)]
    return sorted(names, key=lambda name: getattr(getattr(owner, name, None), "__module__", None) != owner_name)


def _import_module(name: str) -> ModuleType:
    with _on_path(Path.cwd()):  # which ``python -m`` looks in, and a console script does not
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name + ".").startswith(error.name + "."):
                raise
            raise UsageError(
                f"there is no module {quote(error.name)}",
                "expected an installed module, or one in the current folder",
                "check the name, or name the file: path/file.py:callable",
            ) from None


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no such file: {quote(path)}", _FORM, "check the path")
    full = path.resolve()
    # Unique for each file: two of them may have one name, and neither may stand for an installed module.
    name = f"jaccli_spec_{hashlib.sha1(os.fsencode(full)).hexdigest()[:12]}_{full.stem}"
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise UsageError(f"{quote(path)} cannot be imported", _FORM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up
    try:
        with _on_path(full.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


@contextlib.contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Inside, the user's code runs: prints go to standard error, exceptions become a ``RefusedError`` of one line."""
    try:
        with contextlib.redirect_stdout(chatter()):
            yield
    except (JaccliError, KeyboardInterrupt, TimeIsUp):
        raise
    except BaseException as error:
        # SystemExit too: a script without a main guard parses the arguments of jaccli.
        raise RefusedError(
            f"{quote(what)} raised {shortened(error)}{_line_of(error)}",
            "expected code that makes a network",
            "correct it; JACCLI_TRACEBACK=1 shows where it was raised",
        ) from error


def _line_of(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename.startswith("<"):
        return ""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"


def build(
    arch: str | Callable[..., Any] | nn.Module,
    arch_args: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """The network that ``arch`` makes with ``arch_args``. All random generators are seeded, and put back afterwards.

    Raises:
        UsageError: it does not take these arguments, or does not make an ``nn.Module``.
        RefusedError: the code raised.
    """
    import torch

    from jaccli.networks.state.random_generators import seeded

    arguments = dict(arch_args or {})
    maker = resolve(arch) if isinstance(arch, str) else arch
    name = arch if isinstance(arch, str) else getattr(arch, "__name__", type(arch).__name__)
    if isinstance(maker, torch.nn.Module):
        if arguments:
            text = worded("{name} is a network already and takes no {arch_args}", name=quote(name))
            raise UsageError(text, "expected a class or function")
        return maker
    if not callable(maker):
        raise UsageError(
            f"{quote(name)} is of type {type(maker).__name__}",
            "expected a class or function that makes an nn.Module",
        )
    _check_arguments(maker, arguments, name)
    with _users_code(name), seeded(seed or 0):
        model = maker(**arguments)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"{quote(name)} gave an object of type {type(model).__name__}",
            "expected an nn.Module",
            "name the class, or a function that returns the network",
        )
    return model


def _check_arguments(maker: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> None:
    try:
        signature = inspect.signature(maker)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        shown = quote(str(signature), 160)[1:-1]
        raise UsageError(f"{quote(name)}: {error}", f"it takes {shown}", worded("give them with {arch_args}")) from None
