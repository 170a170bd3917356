"""An ordinary ``nn.Module`` as a network: module boundaries are seen through hooks that last one run.

A pass may have to begin again: when it is about to write to a parameter (then it runs with a copy of it), and when an
operator refuses the dispatch mode that watches for such writes (then it runs without, on copies of all parameters). The
tap is put back before that, and its state is all that a pass changes outside of the model.
"""

from __future__ import annotations

import copy
import sys
import threading
import traceback
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution
from torch.nn.parameter import is_lazy

from jaccli.errors import RefusedError, UnsupportedError
from jaccli.networks.cast import cast_in_place
from jaccli.networks.network import Network, StopRun, Tap
from jaccli.networks.quantized import packed_modules
from jaccli.networks.state.checkpointing import checkpoints_bypassed
from jaccli.networks.state.custom_code import has_own_code, own_generators
from jaccli.networks.state.fingerprint import PLAIN, Fingerprint
from jaccli.networks.state.parameter_writes import ParameterWritten, WriteWatch
from jaccli.networks.state.process_settings import restored_settings
from jaccli.networks.state.random_generators import GeneratorStates, use_numpy
from jaccli.networks.state.snapshot import (
    ModuleState,
    attribute_values,
    without_parameter_gradients,
)
from jaccli.networks.state.unseeded_generators import fixed_seeds

_TENSORS = frozenset(("_parameters", "_buffers"))
# Most attributes of a module are empty containers of these types.
_TABLES = frozenset((dict, OrderedDict))
# Attributes that no forward pass reads.
_NOT_READ = frozenset(
    (
        *("_initializing", "_non_persistent_buffers_set", "_is_full_backward_hook", "_c", "_concrete_type"),
        *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    )
)
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


class EagerNetwork(Network):
    """See ``Network``. The module is used in the mode (training or not) that it is in.

    One session at a time: others wait, since a module has one state.
    """

    kind = "module"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        lazy = [name for name, tensor in module.named_parameters() if is_lazy(tensor)]
        if lazy:
            raise RefusedError(
                f"the model has parameters that have no shape yet ({_first_three(lazy)})",
                "expected a model that has been run before",
                "call it once with samples like yours",
            )
        self.packed = packed_modules(module.named_modules())
        empty = [name for name, tensor in module.named_parameters() if tensor.is_meta]
        if empty:
            raise RefusedError(
                f"the model has parameters on the meta device, without values ({_first_three(empty)})",
                "expected a model with weights",
                "model.to_empty(device='cpu') and load_state_dict give it some",
            )
        self._state: ModuleState | None = None
        self._generators = GeneratorStates([])
        self._guarded = False  # whether the session guards against code that is not torch's own
        self._lock = threading.RLock()  # a session may be opened within a session of the same thread
        self._copied: set[int] = set()  # storages of the parameters that passes get copies of
        self._unwatched: set[int] = set()  # those of them that are copied only because no mode may watch

    def layers(self) -> Mapping[str, str]:
        named = self.module.named_modules(remove_duplicate=False)
        return {path: type(module).__name__ for path, module in named if path}

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        with ExitStack() as stack:
            stack.enter_context(self.session())
            stack.enter_context(optimized_execution(False))
            start, versions = _tap_state(tap), _versions(args, kwargs)
            never_watched = self.refuses_modes
            # It ends: a pass begins again once without a watch, and once for each parameter that is newly copied.
            while True:
                try:
                    return self._pass(args, kwargs, tap)
                except Exception as error:
                    # Some operators that take functions raise under a dispatch mode: begin again without a watch.
                    if never_watched:
                        raise
                    self._set_refuses_modes(self._guarded and not self.refuses_modes and _is_of_a_mode(error))
                    if not self.refuses_modes:
                        raise
                    _restore_tap(tap, start)
                except ParameterWritten as write:
                    # Begin again with a copy of that parameter.
                    self._copied.add(write.storage)
                    if _versions(args, kwargs) != versions:
                        raise UnsupportedError(
                            "the model writes to its input, and to a parameter",
                            "expected a forward pass that changes one of them at most",
                            "let forward work on x.clone()",
                        ) from None
                    _restore_tap(tap, start)

    def _pass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        state, generators = self._state, self._generators
        assert state is not None
        state.install()
        watching = self._guarded and not self.refuses_modes
        watch = WriteWatch(state.watched_storages if watching else ())
        # ``StopRun`` is raised again at the end only: a write before it must be reported first.
        output, stop = None, None
        try:
            with (
                checkpoints_bypassed(self.bypasses_checkpoints),
                _hooks(self.module, tap) if tap is not None else nullcontext(),
                watch if watching else nullcontext(),
                restored_settings() if self._guarded else nullcontext(),
                fixed_seeds() if self._guarded else nullcontext(),
            ):
                output = self.module(*args, **kwargs)
        except StopRun as reached:
            stop = reached
        except Exception:
            if watch.written is None:  # else the executor of a script has replaced ``ParameterWritten`` by an error
                raise
        finally:
            watch.leave()
            self.draws.add(generators.restore())
        self._check_writes(state, watch)
        if stop is not None:
            raise stop
        return output

    def _check_writes(self, state: ModuleState, watch: WriteWatch) -> None:
        """After a pass.

        Raises:
            ParameterWritten: it wrote into a parameter or buffer that is not a copy.
        """
        if watch.written is not None:
            raise ParameterWritten(watch.written)
        if self._guarded:
            state.check_parameters()

    def _set_refuses_modes(self, refuses: bool) -> None:
        """Run passes without a watch from now on, and with copies of all parameters; or with a watch again."""
        self.refuses_modes = refuses
        self._copied -= self._unwatched
        self._unwatched = set()
        if refuses and self._state is not None:
            self._unwatched = set(self._state.watched_storages)
            self._copied |= self._unwatched
            _reset_dynamo()

    @property
    def runs_own_code(self) -> bool:
        return self._guarded

    def generator_states(self) -> GeneratorStates:
        return self._generators_now(has_own_code(self.module))

    def _generators_now(self, own_code: bool) -> GeneratorStates:
        if not own_code:
            return GeneratorStates.now(python=False)
        use_numpy()
        return GeneratorStates.now(own_generators(self.module, attribute_values(self.module)))

    @contextmanager
    def session(self, *, frozen: bool = True) -> Iterator[None]:
        with self._lock:
            if self._state is not None:
                yield
                return
            with without_parameter_gradients(self.tensors(), frozen), self._installed(frozen):
                yield

    @contextmanager
    def _installed(self, frozen: bool) -> Iterator[None]:
        # On its fast path TransformerEncoderLayer calls no submodules, and so no hooks.
        fast = torch.backends.mha.get_fastpath_enabled()
        self._guarded = has_own_code(self.module)
        self._generators = self._generators_now(self._guarded)
        self._state = state = ModuleState(self.module, self._copied, frozen, self._guarded)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            state.remove()
            self._state = None
            self.draws.add(self._generators.restore())  # a backward pass may draw too

    def cast(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> EagerNetwork:
        memo: dict[int, Any] = {}
        for value in attribute_values(self.module):
            # A tensor with a graph, such as a state kept between calls, cannot be deep-copied.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        module = copy.deepcopy(self.module, memo)
        cast_in_place(module, device, dtype)
        network = EagerNetwork(module)
        network.bypasses_checkpoints = self.bypasses_checkpoints
        return network

    def tensors(self) -> Iterator[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()

    def fingerprint(self, moving: Collection[int] = ()) -> Fingerprint:
        result = Fingerprint(moving)
        stack: list[nn.Module] = [self.module]
        seen: set[int] = set()
        while stack:
            module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            result.name(module)
            result.name(type(module))
            for name, value in vars(module).items():
                kind = type(value)  # the most frequent kinds come first
                if kind in _TABLES and not value:
                    continue
                if kind in PLAIN:
                    result.key.append(value)
                elif name in _TENSORS:
                    for tensor in value.values():
                        result.value(tensor)
                elif name == "_modules":
                    stack.extend(m for m in value.values() if m is not None)
                elif name not in _NOT_READ:
                    stack += result.value(value)
            if isinstance(module, torch.jit.ScriptModule):
                _add_script(result, module)
        return result

    def warnings(self) -> list[str]:
        named = list(self.module.named_modules())
        mixing = [n for n, m in named if isinstance(m, _BATCH_NORMS) and (m.training or m.running_mean is None)]
        drawing = [n for n, m in named if _draws(m)]
        result = []
        if mixing:
            result.append(
                f"BatchNorm normalises over the batch ({_first_three(mixing)}): each sample's J depends on the others"
            )
        if self.packed:
            names = _first_three(list(self.packed))
            result.append(f"int8 kernels have no derivative ({names}): J has no share of the paths through them")
        if drawing:
            result.append(f"Dropout is in training mode ({_first_three(drawing)}): J is that of one random mask")
        return result

    def draws_random_numbers(self) -> bool:
        return any(map(_draws, self.module.modules()))


def _reset_dynamo() -> None:
    """Drop what dynamo has compiled under a mode: it would be used again without."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


def _is_of_a_mode(error: Exception) -> bool:
    """Whether an error may come from an operator that takes functions (``cond``) under a dispatch mode."""
    if type(error).__module__.startswith("torch._dynamo") or "HigherOrderOperator" in str(error):
        return True
    names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.startswith("torch._higher_order_ops") for name in names)


def _draws(module: nn.Module) -> bool:
    return isinstance(module, _DRAWING) and module.training and getattr(module, "p", 1.0) != 0


def _tap_state(tap: Tap | None) -> dict[str, Any]:
    """The attributes of a tap, containers copied."""
    attributes = {} if tap is None else vars(tap)
    return {n: copy.copy(v) if isinstance(v, dict | list | set) else v for n, v in attributes.items()}


def _versions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    return [t._version for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and not t.is_inference()]


def _restore_tap(tap: Tap | None, state: dict[str, Any]) -> None:
    if tap is not None:
        vars(tap).update(state)


def _add_script(result: Fingerprint, module: Any) -> None:
    """Add the tensors and attributes of a script within an ordinary module: they are on the C++ side."""
    for _, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        result.tensor(tensor)
    kind = vars(module).get("_concrete_type")
    for name in ("training", *(kind.get_attributes() if kind is not None else ())):
        if module._c.hasattr(name):
            result.value(module._c.getattr(name))


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _hooks(module: nn.Module, tap: Tap) -> Iterator[None]:
    """Inside, the calls of the modules in ``tap.paths`` are reported to the tap.

    A hook belongs to a module, not to a name: a module registered under two names reports each call under both.
    """
    paths: dict[int, list[str]] = {}
    owners: dict[int, nn.Module] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        if path and (tap.paths is None or path in tap.paths) and not isinstance(owner, torch.jit.ScriptModule):
            paths.setdefault(id(owner), []).append(path)
            owners[id(owner)] = owner
    calls: Counter[int] = Counter()

    def enter(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls[id(owner)] += 1
        for path in paths[id(owner)]:
            args, kwargs = tap.enter(path, calls[id(owner)], args, kwargs)
        return args, kwargs

    def leave(owner: nn.Module, _: Any, output: Any) -> Any:
        for path in paths[id(owner)]:
            output = tap.leave(path, calls[id(owner)], output)
        return output

    with ExitStack() as stack:
        for owner in owners.values():
            stack.callback(owner.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(owner.register_forward_hook(leave).remove)
        yield
