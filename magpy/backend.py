"""Being torch.compile's backend: the entry points, and the place where magpy takes over from Dynamo.

A backend of torch.compile is called after Dynamo has captured a graph, which is the part magpy replaces. Looking up
the name "magpy" imports this module, and that is when it takes over ``_TorchDynamoContext.__call__`` for contexts
whose backend is magpy's, and for no other. ``torch.compile`` then returns what it always returns: an
``OptimizedModule`` for a module, a wrapper for a function, a class itself. Their calls go to a ``magpy._C.Callable``.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.modules.module
from torch import nn

from magpy import _C, config
from magpy import backward as backward  # the recorder calls them while a program is observed
from magpy import checkpoint as checkpoint
from magpy import symbols as symbols  # tells the recorder what it knows of numbers

try:
    import torch._dynamo.eval_frame as eval_frame
    from torch._dynamo.eval_frame import (
        OptimizedModule,
        _TorchDynamoContext,
        cached_backends,
        innermost_backend,
        innermost_fn,
    )
    from torch._dynamo.external_utils import get_nonrecursive_disable_wrapper
except ImportError as error:
    raise ImportError(
        f"magpy cannot take over torch.compile in torch {torch.__version__}: {error}. "
        "magpy is made for torch 2.13; install that version."
    ) from error

# -- Backends ---------------------------------------------------------------------------------------------------------


def magpy(gm: torch.fx.GraphModule, example_inputs: list[torch.Tensor], **kwargs: Any) -> Callable[..., Any]:
    """The backend ``"magpy"``.

    With ``torch.compile(..., backend="magpy")`` this is never called: magpy captures by itself. It is called where
    Dynamo has captured already (``torch.compiler.set_stance(force_backend="magpy")``), and then does what
    ``magpy_fx`` does.
    """
    return magpy_fx(gm, example_inputs, **kwargs)


def magpy_fx(gm: torch.fx.GraphModule, example_inputs: list[torch.Tensor], **kwargs: Any) -> Callable[..., Any]:
    """The backend ``"magpy_fx"``: Dynamo captures, magpy compiles the FX graph. Takes the options of ``"magpy"``."""
    from magpy.fx_backend import magpy_fx as compile_fx

    config.resolve(kwargs.get("options"), kwargs.get("mode"))
    return compile_fx(gm, example_inputs, **kwargs)


def _reset() -> None:
    """Called by torch.compiler.reset(), once for each registration."""
    _C.reset()


magpy.reset = _reset  # type: ignore[attr-defined]


def _keep_reset() -> None:
    """Stay in the list that torch.compiler.reset() goes through; each reset empties it."""
    cached_backends.setdefault(id(magpy), magpy)


def _is_magpy(backend: Any) -> bool:
    """Is `backend`, as given to torch.compile or set_stance, the backend "magpy"?"""
    return backend is magpy or backend == "magpy" or getattr(backend, "compiler_fn", None) is magpy


def _backend_of(context: _TorchDynamoContext) -> Any:
    """The backend object that a torch.compile context was made with."""
    return innermost_backend(cast(Callable[..., Any], context.callback))


# -- What a context asks for ------------------------------------------------------------------------------------------


def _options(context: _TorchDynamoContext) -> dict[str, Any]:
    """All options of a torch.compile context. Raises RuntimeError for unknown ones."""
    kwargs = getattr(_backend_of(context), "kwargs", {})
    options = config.resolve(kwargs.get("options"), kwargs.get("mode"))
    limit = _recompile_limit(context)
    if limit is not None and "trace_limit" not in (kwargs.get("options") or {}):
        options["trace_limit"] = limit
    return {**options, "fullgraph": bool(context.fullgraph), "dynamic": context._dynamic}


def _recompile_limit(context: _TorchDynamoContext) -> int | None:
    """torch.compile's ``recompile_limit``, kept by the callback that would have converted frames."""
    return getattr(getattr(context.callback, "_torchdynamo_orig_backend", None), "_recompile_limit", None)


def _rebuild(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Unpickle or copy a compiled module: compile it again as it was."""
    return cast(nn.Module, torch.compile(module, backend="magpy", **settings))


# -- Compiled modules, functions, classes -----------------------------------------------------------------------------


class CompiledModule(_C.OptimizedBase, OptimizedModule):  # type: ignore[misc]
    """torch's OptimizedModule, called without its Python layers as long as no hook needs them."""

    def _initialize(self) -> None:
        self.forward = _C.Callable(_target(self._orig_mod.__call__), _options(self.dynamo_ctx))
        if hasattr(self._orig_mod, "_initialize_hook"):  # lazy modules initialise themselves at the first call
            self._forward = self.forward
            self.forward = self._call_lazy_check

    def _slow_call(self, *args: Any, **kwargs: Any) -> Any:
        """The way with hooks on the compiled module itself, with global hooks, and where the call is watched."""
        if torch.nn.modules.module._has_any_global_hook():
            return OptimizedModule.__call__(self, *args, **kwargs)
        return nn.Module.__call__(self, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        kwargs = getattr(_backend_of(self.dynamo_ctx), "kwargs", {})
        settings = {"fullgraph": self.dynamo_ctx.fullgraph, "dynamic": self.dynamo_ctx._dynamic, **kwargs}
        return (_rebuild, (self._orig_mod, settings))


@functools.cache
def _unseen(code: types.CodeType) -> types.CodeType:
    """The same code under a file name by which `warnings` and `logging` pass over a frame when they look for their
    callers, so that a stacklevel counts the program's own frames."""
    return code.replace(co_filename="<frozen magpy, passed over as importlib._bootstrap is>")


def _target(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What is observed for `fn`: itself if it is Python, else a Python function that calls it."""
    function = fn.__func__ if isinstance(fn, types.MethodType) else fn
    if isinstance(function, types.FunctionType):
        return fn

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    call.__code__ = _unseen(call.__code__)
    return call


def _compile_function(context: _TorchDynamoContext, fn: Callable[..., Any]) -> Callable[..., Any]:
    callable_ = _C.Callable(_target(fn), _options(context))

    # A Python function around the C callable: it binds to instances, and an outer Dynamo region can inline it.
    def compiled(*args: Any, **kwargs: Any) -> Any:
        return callable_(*args, **kwargs)

    compiled.__code__ = _unseen(compiled.__code__)
    functools.update_wrapper(compiled, fn)
    compiled._magpy_callable = callable_  # type: ignore[attr-defined]
    compiled._torchdynamo_inline = fn  # type: ignore[attr-defined]
    compiled._torchdynamo_orig_callable = fn  # type: ignore[attr-defined]
    compiled._torchdynamo_wrapper_id = id(compiled)  # type: ignore[attr-defined]
    compiled.get_compiler_config = lambda: context.compiler_config  # type: ignore[attr-defined]
    return compiled


def _compile_module(context: _TorchDynamoContext, module: nn.Module) -> nn.Module:
    if type(module) is torch.jit.RecursiveScriptModule:  # and no other, as torch
        raise RuntimeError("torch.compile does not support torch.jit models: compile the original module")
    compiled = CompiledModule(module, context)
    compiled._torchdynamo_orig_callable = module.forward
    compiled._torchdynamo_wrapper_id = id(compiled)
    compiled.get_compiler_config = lambda: context.compiler_config
    return compiled


def _compile(context: _TorchDynamoContext, fn: Any) -> Any:
    """What torch.compile returns for `fn` under a context of ours."""
    fn = innermost_fn(fn)
    if isinstance(fn, nn.Module):
        return _compile_module(context, fn)
    if inspect.isclass(fn):  # returned as itself, with its calls compiled
        setattr(fn, "__call__", context(fn.__call__))  # noqa: B010
        if issubclass(fn, nn.Module):
            setattr(fn, "_call_impl", context(fn._call_impl))  # noqa: B010
        return fn
    if not callable(fn):
        raise AssertionError(f"A callable function is expected, but {type(fn)} is provided.")
    return _compile_function(context, fn)


# -- Taking over ------------------------------------------------------------------------------------------------------

_original_call = _TorchDynamoContext.__call__


@functools.wraps(_original_call)
def _call(self: _TorchDynamoContext, fn: Any) -> Any:
    if _is_magpy(_backend_of(self)):
        return _compile(self, fn)
    return _original_call(self, fn)


def _disabled_codes() -> Iterator[types.CodeType]:
    """Code of the wrappers that torch.compiler.disable makes around functions."""
    for maker in (eval_frame.DisableContext.__call__, get_nonrecursive_disable_wrapper):
        yield from (const for const in maker.__code__.co_consts if isinstance(const, types.CodeType))


def _transparent_codes() -> Iterator[types.CodeType]:
    """Code of nn.Module's call machinery, through which every module's forward is called."""
    yield from (fn.__code__ for fn in (nn.Module._wrapped_call_impl, nn.Module._call_impl))
    yield from (const for const in nn.Module._call_impl.__code__.co_consts if isinstance(const, types.CodeType))


def _take_over() -> None:
    """Install ourselves, once. Raises RuntimeError where torch is not as we know it."""
    if getattr(_TorchDynamoContext.__call__, "_magpy", False):
        return
    missing = [name for name in ("_stance", "_TorchDynamoContext", "OptimizedModule") if not hasattr(eval_frame, name)]
    missing += [name for name in ("_initialize", "_call_lazy_check") if not hasattr(OptimizedModule, name)]
    if missing:
        raise RuntimeError(
            f"magpy cannot take over torch.compile in torch {torch.__version__}: torch._dynamo.eval_frame lacks "
            f"{', '.join(missing)}. magpy is made for torch 2.13; install that version, or use backend='magpy_fx'."
        )
    _C.watch_stance(vars(eval_frame))
    own_folder = _take_over.__code__.co_filename.rpartition("/")[0] + "/"
    _C.watch_codes(frozenset(_disabled_codes()), frozenset(_transparent_codes()), own_folder)
    _C.watch_hooks(vars(torch.nn.modules.module))
    _call._magpy = True  # type: ignore[attr-defined]
    _TorchDynamoContext.__call__ = _call  # type: ignore[method-assign]


_take_over()

# -- Called from C ----------------------------------------------------------------------------------------------------


def _forced(callable_: Any, target: Callable[..., Any]) -> Callable[..., Any]:
    """Under set_stance(force_backend=...): `target` compiled by Dynamo for that backend, kept with the callable."""
    backend = eval_frame._stance.backend
    kept = callable_.__dict__.setdefault("_forced", {})
    key = backend if isinstance(backend, str) else id(backend)
    if key not in kept:
        kept[key] = (backend, torch._dynamo.optimize(backend)(target))
    return kept[key][1]


def _empty_like_recorded(
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: int,
    device: int,
    offset: int,
    requires_grad: bool,
    is_leaf: bool,
) -> torch.Tensor:
    """A tensor with the metadata of one that is gone. Raises RuntimeError where such a tensor cannot be made."""
    if device != 0 or (requires_grad and not is_leaf):
        raise RuntimeError("an input tensor is gone, and one like it cannot be made")
    last = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if 0 not in size else -1
    storage = torch.empty(offset + last + 1, dtype=_DTYPES[dtype])
    return storage.as_strided(size, stride, offset).requires_grad_(requires_grad)


#: torch's ScalarType codes, as its C ABI numbers them.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    9: torch.complex64,
    10: torch.complex128,
    11: torch.bool,
    15: torch.bfloat16,
}
