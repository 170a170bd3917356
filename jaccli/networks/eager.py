"""An ordinary ``nn.Module`` as a network: boundaries are seen through hooks that last one run."""

from __future__ import annotations

import copy
import sys
import threading
import traceback
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution
from torch.nn.parameter import is_lazy

from jaccli.errors import RefusedError, UnsupportedError
from jaccli.networks.dtypes import converted
from jaccli.networks.network import Network, StopRun, Tap
from jaccli.networks.quantized import packed_modules
from jaccli.networks.state.checkpointing import checkpoints_bypassed
from jaccli.networks.state.custom_code import has_own_code, held_generators
from jaccli.networks.state.fingerprint import PLAIN, Fingerprint
from jaccli.networks.state.parameter_writes import ParameterWritten, WriteWatch
from jaccli.networks.state.process_settings import restored_settings
from jaccli.networks.state.random_generators import GeneratorStates, use_numpy
from jaccli.networks.state.snapshot import (
    ModuleState,
    attribute_tensors,
    attribute_values,
    map_attributes,
    without_parameter_gradients,
)
from jaccli.networks.state.unseeded_generators import fixed_seeds

_TENSORS = frozenset(("_parameters", "_buffers"))
# Most of what a module keeps are such containers, and empty.
_HOOKS = frozenset((dict, OrderedDict))
# What a module keeps and no forward pass reads.
_ASIDE = frozenset(
    (
        *("_initializing", "_non_persistent_buffers_set", "_is_full_backward_hook", "_c", "_concrete_type"),
        *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    )
)
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_NOISY = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


class EagerNetwork(Network):
    """See ``Network``. The module is used in the mode it is in."""

    kind = "module"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        lazy = [name for name, tensor in module.named_parameters() if is_lazy(tensor)]
        if lazy:
            raise RefusedError(
                f"the model has parameters that have no shape yet ({_some(lazy)})",
                "expected a model that has been run before",
                "call it once with samples like yours",
            )
        self.packed = packed_modules(module.named_modules())
        empty = [name for name, tensor in module.named_parameters() if tensor.is_meta]
        if empty:
            raise RefusedError(
                f"the model has parameters on the meta device, without values ({_some(empty)})",
                "expected a model with weights",
                "model.to_empty(device='cpu') and load_state_dict give it some",
            )
        self._state: ModuleState | None = None
        self._noise = GeneratorStates([])
        self._watched = False
        self._lock = threading.RLock()
        self._shielded: set[int] = set()
        self._unwatched: set[int] = set()  # of these, those that are so because nobody watches

    def layers(self) -> Mapping[str, str]:
        named = self.module.named_modules(remove_duplicate=False)
        return {path: type(module).__name__ for path, module in named if path}

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        with ExitStack() as stack:
            stack.enter_context(self.session())
            stack.enter_context(optimized_execution(False))
            start, versions = _noted(tap), _versions(args, kwargs)
            before = self.refuses_modes
            while True:
                try:
                    return self._pass(args, kwargs, tap)
                except Exception as error:
                    # Operators that take functions are refused below a watch: the pass begins anew without.
                    if before:  # the pass had no watch to begin with
                        raise
                    self._watch_no_more(self._watched and not self.refuses_modes and _takes_functions(error))
                    if not self.refuses_modes:
                        raise
                    _put_back(tap, start)
                except ParameterWritten as write:
                    # The pass begins anew, now with a copy of that parameter.
                    self._shielded.add(write.storage)
                    if _versions(args, kwargs) != versions:
                        raise UnsupportedError("the model writes to its input, and to a parameter") from None
                    _put_back(tap, start)

    def _pass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        state, noise = self._state, self._noise
        assert state is not None
        state.install()
        watching = self._watched and not self.refuses_modes
        watch = WriteWatch(state.storages if watching else ())
        output, stop = None, None
        try:
            with (
                checkpoints_bypassed(self.bypasses_checkpoints),
                _hooks(self.module, tap) if tap is not None else nullcontext(),
                watch if watching else nullcontext(),
                restored_settings() if self._watched else nullcontext(),
                fixed_seeds() if self._watched else nullcontext(),
            ):
                output = self.module(*args, **kwargs)
        except StopRun as reached:
            stop = reached
        except Exception:
            if watch.found is None:  # a script's executor makes an error of its own of what is raised within
                raise
        finally:
            watch.leave()
            self.draws.add(noise.restore())
        if watch.found is not None:
            raise ParameterWritten(watch.found)
        if self._watched:
            state.check()
        if stop is not None:
            raise stop
        return output

    def _watch_no_more(self, wanted: bool) -> None:
        """Or again. Where nobody watches, every pass has copies of all parameters."""
        self.refuses_modes = wanted
        self._shielded -= self._unwatched
        self._unwatched = set()
        if wanted and self._state is not None:
            self._unwatched = set(self._state.storages)
            self._shielded |= self._unwatched
            _forget_compiled()

    @property
    def runs_own_code(self) -> bool:
        return self._watched

    def generator_states(self) -> GeneratorStates:
        return self._noise_now(has_own_code(self.module))

    def _noise_now(self, own_code: bool) -> GeneratorStates:
        if not own_code:
            return GeneratorStates.now(python=False)
        use_numpy()
        return GeneratorStates.now(held_generators(self.module, attribute_values(self.module)))

    @contextmanager
    def session(self, *, frozen: bool = True) -> Iterator[None]:
        """See ``Network``. One thread at a time: a module has one state."""
        with self._lock:
            if self._state is not None:
                yield
                return
            with without_parameter_gradients(self.tensors(), frozen), self._installed(frozen):
                yield

    @contextmanager
    def _installed(self, frozen: bool) -> Iterator[None]:
        # TransformerEncoderLayer skips its submodules, and so their hooks, on its fast path.
        fast = torch.backends.mha.get_fastpath_enabled()
        self._watched = has_own_code(self.module)
        self._noise = self._noise_now(self._watched)
        self._state = state = ModuleState(self.module, self._shielded, frozen, self._watched)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            state.remove()
            self._state = None
            self.draws.add(self._noise.restore())  # a backward pass may draw too

    def cast(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> EagerNetwork:
        memo: dict[int, Any] = {}
        for value in attribute_tensors(self.module):
            # Tensors with a history, as a state kept between calls, refuse to be deep-copied.
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        twin = copy.deepcopy(self.module, memo)
        cast_in_place(twin, device, dtype)
        network = EagerNetwork(twin)
        network.bypasses_checkpoints = self.bypasses_checkpoints
        return network

    def tensors(self) -> Iterator[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()

    def fingerprint(self, moving: Collection[int] = ()) -> Fingerprint:
        stamp = Fingerprint(moving)
        waiting: list[nn.Module] = [self.module]
        seen: set[int] = set()
        while waiting:
            module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            stamp.name(module)
            stamp.name(type(module))
            for name, value in vars(module).items():
                kind = type(value)  # most of what a module keeps comes first here
                if kind in _HOOKS and not value:
                    continue
                if kind in PLAIN:
                    stamp.key.append(value)
                elif name in _TENSORS:
                    for tensor in value.values():
                        stamp.value(tensor)
                elif name == "_modules":
                    waiting.extend(m for m in value.values() if m is not None)
                elif name not in _ASIDE:
                    waiting += stamp.value(value)
            if isinstance(module, torch.jit.ScriptModule):
                _stamp_script(stamp, module)
        return stamp

    def warnings(self) -> list[str]:
        named = list(self.module.named_modules())
        mixing = [n for n, m in named if isinstance(m, _BATCH_NORMS) and (m.training or m.running_mean is None)]
        noisy = [n for n, m in named if _draws(m)]
        found = []
        if mixing:
            found.append(
                f"BatchNorm normalises over the batch ({_some(mixing)}): each sample's J depends on the others"
            )
        if self.packed:
            some = _some(list(self.packed))
            found.append(f"int8 kernels have no derivative ({some}): J has no share of the paths through them")
        if noisy:
            found.append(f"Dropout is in training mode ({_some(noisy)}): J is that of one random mask")
        return found

    def draws_random_numbers(self) -> bool:
        return any(map(_draws, self.module.modules()))


def _forget_compiled() -> None:
    """What dynamo has learnt below a mode, it would go on with."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


def _takes_functions(error: Exception) -> bool:
    """Whether an error may come of an operator as ``cond`` or ``flex_attention`` below a dispatch mode."""
    if type(error).__module__.startswith("torch._dynamo") or "HigherOrderOperator" in str(error):
        return True
    names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.startswith("torch._higher_order_ops") for name in names)


def _draws(module: nn.Module) -> bool:
    return isinstance(module, _NOISY) and module.training and getattr(module, "p", 1.0) != 0


def _noted(tap: Tap | None) -> dict[str, Any]:
    """What a tap holds, its containers copied."""
    held = {} if tap is None else vars(tap)
    return {n: copy.copy(v) if isinstance(v, dict | list | set) else v for n, v in held.items()}


def _versions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    return [t._version for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and not t.is_inference()]


def _put_back(tap: Tap | None, held: dict[str, Any]) -> None:
    if tap is not None:
        vars(tap).update(held)


def _stamp_script(stamp: Fingerprint, module: Any) -> None:
    """Of a script within an ordinary module: what lies on the other side of the binding."""
    for _, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        stamp.tensor(tensor)
    kind = vars(module).get("_concrete_type")
    for name in ("training", *(kind.get_attributes() if kind is not None else ())):
        if module._c.hasattr(name):
            stamp.value(module._c.getattr(name))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def cast_in_place(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """``converted`` of a module's parameters, buffers and what its plain attributes hold; tied tensors stay tied."""
    convert = partial(converted, device=device, dtype=dtype)
    done: dict[int, tuple[Tensor, Tensor]] = {}  # the original is kept, or its id could be given away
    cast: set[int] = set()

    def whole(module: nn.Module) -> None:
        # Not ``Module.to``, which makes real numbers of complex ones.
        module._apply(convert)
        cast.update(map(id, module.modules()))
        map_attributes(module, new)

    def new(value: Any) -> Any:
        if isinstance(value, nn.Parameter):  # in place: it may be registered as well
            value.data = convert(value.data)
        elif isinstance(value, Tensor):
            return done.setdefault(id(value), (value, convert(value)))[1]
        elif isinstance(value, nn.Module) and id(value) not in cast:
            whole(value)
        elif isinstance(value, tuple):
            items = [new(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    whole(module)


@contextmanager
def _hooks(module: nn.Module, tap: Tap) -> Iterator[None]:
    """Report the calls of the modules that the tap wants.

    Hooks sit on objects: of a module registered under two names, both names report each call.
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
