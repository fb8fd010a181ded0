"""What comes before the first random number of a forward pass, run once for all samples.

A pass is recorded: every call of a module that ended before the first random number, and depends on
nothing but what every pass begins with, keeps its outputs. Later passes run the same code, but such
a call gives these outputs again, without a look at the modules inside. Code between them runs anew,
but for operators of torch that only compute something from what is kept or from parameters: their
results are kept, too, and found again by their arguments.

What a call gives must be made within it: one that writes into its input or hands it through (an
in-place activation, an identity) runs anew, as cheap as it is. What later code writes into is given
as a copy. What is kept otherwise is given as it is, and its version tells whether it was changed.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import (
    BATCH_NORM,
    INSTANCE_NORM,
    DispatchMode,
    flatten,
    has_global_hooks,
    is_dispatched,
    is_dispatching_subclass,
    is_eager,
    storage_id,
    unflatten,
)
from .models import is_compiled, without_ddp

__all__ = ["Prefix", "RecordedForward", "record_forward"]

_CONSTANTS = (bool, int, float, str, torch.Size, torch.dtype, torch.device)
_EXCLUDED = ("batch_norm", "empty", "zeros", "ones", "full", "new_", "clone", "copy", "lift_fresh")
_HASHABLE = (*_CONSTANTS, torch.layout, torch.memory_format)


class _Call:
    """A call of a module, in the order of the pass."""

    def __init__(self, module: nn.Module, start: int) -> None:
        self.module = module
        self.start = start
        self.is_clean = True
        self.outputs: list[Any] | None = None
        """Leaves of what it returned, tensors without gradient; None where it has to run anew."""
        self.structure: Any = None
        self.copies = False
        self.versions: list[int | None] = []

    def keep(self, leaves: Sequence[Any], structure: Any) -> None:
        self.outputs = [
            leaf.detach().as_subclass(Tensor) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        self.structure = structure
        self.versions = [_version(leaf) for leaf in self.outputs]

    def give(self) -> Any:
        assert self.outputs is not None
        leaves = _copied(self.outputs) if self.copies else self.outputs
        given = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return unflatten(given, self.structure)

    def note_versions(self) -> None:
        self.versions = [_version(leaf) for leaf in self.outputs or ()]
        # What torch does not count the writes to.
        self.copies |= any(
            isinstance(leaf, Tensor) and leaf.is_inference() for leaf in self.outputs or ()
        )

    def is_intact(self) -> bool:
        return self.versions == [_version(leaf) for leaf in self.outputs or ()]


class _Results:
    """What an operator has computed from arguments that are kept."""

    def __init__(self, start: int, inputs: Sequence[Tensor], results: Any) -> None:
        self.start = start
        # Held, so that no other tensor can take their place in memory.
        self._inputs = [tensor.detach() for tensor in inputs]
        self._leaves, self._structure = flatten(results)
        self._leaves = [leaf.detach() for leaf in self._leaves]
        self._versions = [_version(leaf) for leaf in self._leaves]

    def is_intact(self) -> bool:
        return self._versions == [_version(leaf) for leaf in self._leaves]

    def touches(self, storage: int) -> bool:
        return any(storage_id(tensor) == storage for tensor in (*self._inputs, *self._leaves))

    def give(self) -> Any:
        return unflatten([leaf.detach() for leaf in self._leaves], self._structure)


_Key = tuple[Any, ...]


def _key(value: Any) -> _Key | None:
    """What two arguments have in common that are the same, as long as their memory is held."""
    if isinstance(value, Tensor):
        if value.is_inference() or value.is_neg() or value.is_complex():
            return None
        return (
            *(storage_id(value), value._version, value.storage_offset()),
            *(value.shape, value.stride(), value.dtype),
        )
    if isinstance(value, (list, tuple)):
        keys = [_key(each) for each in value]
        return None if None in keys else (type(value), *keys)
    if isinstance(value, float):
        return float, repr(value)  # -0.0 equals 0.0
    return (type(value), value) if value is None or isinstance(value, _HASHABLE) else None


def _call_key(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Key | None:
    positional, named = _key(args), _key(tuple(kwargs.items()))
    return None if positional is None or named is None else (operator, positional, named)


@cache
def _computes_alone(operator: Any) -> bool:
    """Whether an operator of torch has no effect but its results, which are more than memory.

    Code of extensions may fill memory, or change a copy, without any operator that shows.
    """
    random = torch.Tag.nondeterministic_seeded in operator.tags
    # Of batch normalisation not even the schema tells that it writes its running statistics.
    return operator.namespace == "aten" and not (
        random or operator._schema.is_mutable or any(name in operator.name() for name in _EXCLUDED)
    )


class _Replayer(DispatchMode):
    """Gives results of operators again."""

    def __init__(self, results: dict[_Key, _Results]) -> None:
        super().__init__()
        self._results = results

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _computes_alone(func) and (key := _call_key(func, args, kwargs)) is not None:
            found = self._results.get(key)
            if found is not None and found.is_intact():
                return found.give()
        return func(*args, **kwargs)


def _version(leaf: object) -> int | None:
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else None


def _copied(leaves: Sequence[Any]) -> list[Any]:
    """Copies of tensors that share memory where the tensors do."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            number = storage_id(leaf)
            if number not in storages:
                storages[number] = leaf.untyped_storage().clone()
            copy = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
            with torch.no_grad():
                copy.set_(storages[number], leaf.storage_offset(), leaf.shape, leaf.stride())
            copies.append(copy)
        else:
            copies.append(leaf)
    return copies


@cache
def _written_arguments(operator: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that an operator writes to."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


# Their schemas do not tell that they write running statistics, at 3 and 4, in training, at 5.
_BATCH_NORM_OPERATORS = {f"aten::{kind}_batch_norm" for kind in ("native", "cudnn", "miopen")}


@cache
def _is_batch_norm(operator: Any) -> bool:
    return operator.name() in _BATCH_NORM_OPERATORS


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class _Randomness:
    """The states of the random number generators that a pass may draw from."""

    def __init__(self, model: nn.Module) -> None:
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        self._cuda = [device for device in devices if device.type == "cuda"]
        self._torch = self._torch_states()
        self._others = self._other_states()

    def _torch_states(self) -> list[Tensor]:
        return [
            torch.default_generator.get_state(),
            *(torch.cuda.get_rng_state(device) for device in self._cuda),
        ]

    @staticmethod
    def _other_states() -> tuple[Any, ...]:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return (random.getstate(),)
        name, keys, *rest = numpy.random.get_state()
        return random.getstate(), name, keys.tobytes(), *rest

    def is_drawn(self) -> bool:
        """Whether torch has drawn since the beginning."""
        return not all(map(torch.equal, self._torch, self._torch_states()))

    def is_drawn_elsewhere(self) -> bool:
        """Whether Python or NumPy has."""
        return self._others != self._other_states()


class _Recorder(DispatchMode):
    """Watches a pass: what each operator writes, what is made where, when torch draws."""

    def __init__(self, model: nn.Module, counted: Collection[int] = ()) -> None:
        """
        Args:
            counted: storages that training writes to and samples do not read.
        """
        super().__init__()
        self.calls: list[_Call] = []
        self.results: dict[_Key, _Results] = {}
        self.reason: str | None = None
        self._randomness = _Randomness(model)
        self._is_open = True
        self._is_busy = False
        self._stack: list[_Call] = []
        self._made: dict[int, int] = {}
        self._read: set[int] = set()
        self._kept: dict[int, list[_Call]] = {}
        self._counted = counted
        self._held = {storage_id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._time = 0
        self._before = {module: _attributes(module) for module in model.modules()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_busy:
            return func(*args, **kwargs)
        values = (*args, *kwargs.values())
        for position, name in _written_arguments(func):
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in _tensors([value]):
                self._before_write(tensor)
        if _is_batch_norm(func) and args[5]:
            for tensor in _tensors(args[3:5]):
                self._before_write(tensor)
        inputs = {storage_id(tensor) for tensor in _tensors(values)}
        key = None
        if self._is_open and inputs and inputs <= self._held and _computes_alone(func):
            key = _call_key(func, args, kwargs)
        results = func(*args, **kwargs)
        if self._is_open or self._kept:
            self._time += 1
            if self._is_open:
                self._read |= inputs - self._made.keys()
            for tensor in _tensors([results]):
                number = storage_id(tensor)
                if number not in inputs:
                    self._made[number] = self._time
            if key is not None:
                self._keep_results(key, list(_tensors(values)), inputs, results)
        if self._is_open and (
            any(isinstance(value, torch.Generator) for value in values)
            or (torch.Tag.nondeterministic_seeded in func.tags and self._randomness.is_drawn())
        ):
            self._close()
        return results

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A module's forward pass, remembered if that can be."""
        if not self._is_open:
            return forward(*args, **kwargs)
        self._time += 1
        call, index = _Call(module, self._time), len(self.calls)
        self.calls.append(call)
        self._stack.append(call)
        try:
            outputs = forward(*args, **kwargs)
        finally:
            self._stack.pop()
        if not self._is_open:
            return outputs
        self._is_busy = True
        try:
            if self._randomness.is_drawn():
                self._close()
            elif call.is_clean:
                self._keep(call, index, outputs)
        finally:
            self._is_busy = False
        return outputs

    def _keep_results(
        self, key: _Key, arguments: list[Tensor], inputs: set[int], results: Any
    ) -> None:
        leaves = flatten(results)[0]
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            return
        made = {storage_id(leaf) for leaf in leaves}
        if made & inputs or any(leaf.is_inference() for leaf in leaves):
            return
        self.results[key] = _Results(self._time, arguments, results)
        self._held |= made

    def _forget_results(self, storage: int) -> None:
        """Forgets what was computed from or into memory that is written to."""
        if storage in self._held:
            self._held.discard(storage)
            for key in [key for key, each in self.results.items() if each.touches(storage)]:
                del self.results[key]

    def finish(self) -> None:
        """Leaves the calls up to the last one that is remembered."""
        self._close()
        for module, before in self._before.items():
            if _differ(before, _attributes(module)):
                self.reason = f"{type(module).__name__} keeps something in itself in a forward pass"
        while self.calls and self.calls[-1].outputs is None:
            self.calls.pop()
        for call in self.calls:
            if not (call.copies or call.is_intact()):
                self.reason = "code writes into tensors that torch does not see"
            call.note_versions()
        self._kept, self._made, self._before = {}, {}, {}

    def _keep(self, call: _Call, index: int, outputs: Any) -> None:
        leaves, structure = flatten(outputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if len(tensors) < sum(not (leaf is None or type(leaf) in _CONSTANTS) for leaf in leaves):
            return
        for tensor in tensors:
            plain = not (is_dispatching_subclass(tensor) or tensor.is_conj() or tensor.is_neg())
            if not plain or self._made.get(storage_id(tensor), -1) < call.start:
                return
        call.keep(leaves, structure)
        for inner in self.calls[index + 1 :]:
            inner.outputs = None
        del self.calls[index + 1 :]
        for key in [key for key, each in self.results.items() if each.start > call.start]:
            del self.results[key]
        self._held |= {storage_id(tensor) for tensor in tensors}
        for tensor in tensors:
            self._kept.setdefault(storage_id(tensor), []).append(call)

    def _before_write(self, tensor: Tensor) -> None:
        number = storage_id(tensor)
        self._forget_results(number)
        for call in self._kept.pop(number, ()):
            if call.outputs is not None and not call.copies:
                call.outputs, call.copies = _copied(call.outputs), True
        made = self._made.get(number)
        if made is not None:
            for call in self._stack:
                call.is_clean &= made > call.start
        elif number not in self._counted and (self._is_open or number in self._read):
            self.reason = (
                "its forward pass writes to memory that was there before, from pass to pass"
            )

    def _close(self) -> None:
        if self._is_open and self._randomness.is_drawn_elsewhere():
            self.reason = "Python's or NumPy's random numbers take part before torch's"
        self._is_open = False


_OF_MODULES = frozenset(nn.Module().__dict__)
_NESTING = 3


def _within(name: object, value: object, depth: int = 0) -> Iterator[tuple[object, Any]]:
    """A value, and what lists and dicts in it hold."""
    yield name, value
    if depth < _NESTING and isinstance(value, (dict, list, deque)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _within((name, key), each, depth + 1)


def _attributes(module: nn.Module) -> dict[Any, Any]:
    own: dict[Any, Any] = {}
    for name, value in module.__dict__.items():
        if name in _OF_MODULES:
            own[name] = value
        elif name != "forward":
            own.update(_within(name, value))
    return {**own, **module._buffers, **module._parameters}


def _differ(before: dict[Any, Any], after: dict[Any, Any]) -> bool:
    """Whether a module has kept something in itself that it had not."""
    return before.keys() != after.keys() or any(
        value is not after[name] and not (type(value) in _CONSTANTS and value == after[name])
        for name, value in before.items()
    )


def _hooked_within(model: nn.Module) -> set[nn.Module]:
    """Modules that have others with hooks inside, which are to be called in every pass."""
    hooked: set[nn.Module] = set()

    def visit(module: nn.Module) -> bool:
        inside = [visit(child) for child in module.children()]
        if any(inside):
            hooked.add(module)
        return any(inside) or bool(module._forward_hooks or module._forward_pre_hooks)

    visit(model)
    return hooked


def _obstacle(model: nn.Module) -> str | None:
    """Why no part of a model's forward pass can be remembered, as far as that shows before it."""
    if not is_eager():
        return "it is traced"
    if is_dispatched():
        return "another TorchDispatchMode is active"
    if has_global_hooks():
        return "hooks of all modules are registered"
    if is_compiled(model):
        return "it is compiled"
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        return "DataParallel copies its modules"
    tensors = (*model.parameters(), *model.buffers())
    if any(is_dispatching_subclass(tensor) for tensor in tensors):
        return "it has parameters of a subclass of Tensor"
    devices = {tensor.device.type for tensor in tensors}
    if devices - {"cpu", "cuda"}:
        return f"random numbers of {sorted(devices - {'cpu', 'cuda'})} cannot be watched"
    if "cuda" in devices and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is captured"
    return None


class Prefix:
    """The part of a model's passes that is the same in all, from the first pass on."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: Sequence[_Call] | None = None
        self._results: dict[_Key, _Results] = {}
        self._recorder: _Recorder | None = None
        self._position = 0
        self._is_installed = False
        self.reason: str | None = _obstacle(model)
        """Why every pass is whole."""
        self.failure: str | None = None
        """Why the last recorded pass could not be shared."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Lets the model's modules be recorded and skipped."""
        if self.reason is not None:
            yield
            return
        opened = _hooked_within(self._model)
        replaced: list[tuple[dict[str, Any], Any]] = []
        try:
            for module in self._model.modules():
                # The model itself drops something, and may be in its call already.
                if module is self._model or module in opened:
                    continue
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                attributes = module.__dict__
                replaced.append((attributes, attributes.get("forward")))
                attributes["forward"] = self._forward_of(module, module.forward)
            self._is_installed = True
            yield
        finally:
            self._is_installed = False
            for attributes, forward in reversed(replaced):
                if forward is None:
                    del attributes["forward"]
                else:
                    attributes["forward"] = forward

    def run(self, draw: Callable[[], Tensor]) -> Tensor:
        """A pass; the first one is recorded."""
        if self.reason is not None:
            return draw()
        if self._calls is None or not self._is_intact():
            with self.recorded():
                return draw()
        self._position = 0
        with _Replayer(self._results) if self._results else nullcontext():
            logits = draw()
        if not self._is_intact():
            self._calls = None  # at once: what it holds is not needed
        return logits

    def _is_intact(self) -> bool:
        return all(call.is_intact() for call in self._calls or ())

    @contextmanager
    def recorded(self, counted: Collection[int] = ()) -> Iterator[None]:
        """Records the pass inside."""
        recorder = self._recorder = _Recorder(self._model, counted)
        try:
            with recorder:
                yield
        finally:
            self._recorder = None
        recorder.finish()
        if recorder.reason is None:
            self._calls, self._results = recorder.calls, recorder.results
            self.failure = None
        else:
            # In a first pass modules may set themselves up: the next one is recorded once more.
            if self.failure is not None:
                self.reason = recorder.reason
            self._calls, self._results, self.failure = None, {}, recorder.reason

    def of_recorded(self) -> Prefix:
        """One for samples of the input whose pass was recorded."""
        prefix = Prefix(self._model)
        prefix.reason = prefix.reason or self.reason or self.failure
        prefix._calls, prefix._results = self._calls, self._results
        return prefix

    def _forward_of(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)  # models ask for the names of its arguments
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._is_installed:  # held by what runs later, such as checkpoint's backward
                return forward(*args, **kwargs)
            if self._recorder is not None:
                return self._recorder.call(module, forward, args, kwargs)
            if self._calls is not None and self._position < len(self._calls):
                call = self._calls[self._position]
                # Where gradients are asked for within a sample, they are of what is computed there.
                if call.module is not module or torch.is_grad_enabled():
                    self._position = len(self._calls)  # another course: nothing fits any more
                else:
                    self._position += 1
                    if call.outputs is not None:
                        return call.give()
            return forward(*args, **kwargs)

        return run


class RecordedForward:
    """What :func:`record_forward` has seen of a training step's forward pass.

    It holds activations of that pass: let go of it with the step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._prefix = Prefix(model)
        self._inputs: list[Tensor] | None = None
        self._state: list[Any] = []

    @contextmanager
    def _recording(self) -> Iterator[None]:
        if self._prefix.reason is not None:
            raise ValueError(
                f"model: expected one whose forward pass can be recorded, got "
                f"{type(self._model).__name__}, of which nothing can be shared: "
                f"{self._prefix.reason}"
            )
        counted = {
            storage_id(buffer)
            for module in self._model.modules()
            if isinstance(module, (BATCH_NORM, INSTANCE_NORM))
            for buffer in module.buffers(recurse=False)
        }
        handle = self._model.register_forward_pre_hook(self.note_input, with_kwargs=True)
        try:
            with self._prefix.installed(), self._prefix.recorded(counted):
                yield
        finally:
            handle.remove()
        self._state = self._now()

    def note_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pre-hook; to be called where the model's call has begun."""
        if self._inputs is not None:
            raise ValueError("record_forward: expected one call of the model, got another")
        self._inputs = [leaf for leaf in flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]

    def _now(self) -> list[Any]:
        """What samples have to find as the pass has left it."""
        devices = {tensor.device.type for tensor in self._model.parameters()}
        return [
            *map(id, self._model.modules()),
            *map(storage_id, (*self._model.parameters(), *self._model.buffers())),
            *(_version(tensor) for tensor in (*self._model.parameters(), *(self._inputs or ()))),
            *(torch.is_autocast_enabled(device) for device in sorted(devices)),
        ]

    @property
    def failure(self) -> str | None:
        """Why the pass cannot be shared, though another of the model perhaps can."""
        return self._prefix.failure

    def prefix(self, model: nn.Module, input: Any) -> Prefix:
        """What samples of the model share with the recorded pass, or why they cannot."""
        if model is not self._model or self._inputs is None:
            got = type(self._model).__name__ if self._inputs is not None else "no forward pass"
            raise ValueError(
                f"share_forward: expected a recorded pass of this {type(model).__name__}, got "
                f"{'another ' if self._inputs is not None else ''}{got}"
            )
        known = {_place(tensor) for tensor in self._inputs}
        if any(_place(x) not in known for x in flatten(input)[0] if isinstance(x, Tensor)):
            raise ValueError("share_forward: expected the recorded pass of this input, got another")
        if self._state != self._now():
            raise ValueError(
                "share_forward: expected modules, parameters, input and autocast as the recorded "
                "pass left them, got others; sample before the optimizer's step, within the same "
                "autocast"
            )
        prefix = self._prefix.of_recorded()
        if prefix.reason is not None:
            raise ValueError(
                f"share_forward: nothing of {type(model).__name__} can be shared: {prefix.reason}"
            )
        return prefix


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return storage_id(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()


@contextmanager
def record_forward(model: nn.Module) -> Iterator[RecordedForward]:
    """Records a training step's forward pass, so that samples share what comes before its dropout.

    Gradients, running statistics and random numbers of the pass are what they would have been.

    Args:
        model: in training mode; in DistributedDataParallel or not.

    Yields:
        What goes to `share_forward` of :func:`sample_statistics`, before the optimizer's step.

    Raises:
        ValueError: if nothing of the model's passes can be shared, such as of a compiled one; or if
            it is called twice. What shows only in the pass, such as modules that set themselves up
            in a model's first one, is an error of :func:`sample_statistics`.

    Example:
        >>> with record_forward(model) as forward:
        ...     logits = model(images)
        >>> statistics = sample_statistics(model, images, 10, share_forward=forward)
        >>> loss = criterion(logits, labels, statistics)
    """
    recorded = RecordedForward(without_ddp(model))
    with recorded._recording():
        yield recorded


class StepRecorder:
    """Records training steps' passes, each from a hook before it to one after it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._recording: tuple[ExitStack, RecordedForward] | None = None
        self._is_first = True

    @property
    def is_recording(self) -> bool:
        return self._recording is not None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In a forward pre-hook of the model, called with these arguments."""
        stack = ExitStack()
        recorded = stack.enter_context(record_forward(self._model))
        recorded.note_input(self._model, args, kwargs)
        self._recording = stack, recorded

    def end(self, output: Any) -> RecordedForward | None:
        """In a forward hook that is always called; None: samples have to be whole passes.

        Without an output the pass has failed.
        """
        assert self._recording is not None
        (stack, recorded), self._recording = self._recording, None
        stack.close()
        if output is None:
            return None
        is_first, self._is_first = self._is_first, False
        # In its first pass a model may set itself up.
        return None if is_first and recorded.failure is not None else recorded
