"""Sparse and quantised tensors: values whose elements no kernel reads.

In a graph such a tensor is an opaque value, which only the steps here take and give: each calls the recorded function
on the tensors of its run, and looks whether what comes out is of the form that the trace was made for. Known functions
only: they compute new tensors of their arguments' values, and where sizes of the results follow from more than sizes,
that is checked. Everything else is refused while the call is recorded (`look`).
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from magpy import _C, steps
from magpy.aten_graph import Unsupported


class Rule(enum.Enum):
    COMPUTES = 1  # a new tensor
    MULTIPLIES = 2  # likewise, the product of two matrices, which may be differentiated by one that is dense
    TURNS = 3  # an opaque tensor over the memory of another one, or of its own
    SHARES = 4  # an opaque tensor over the memory of its dense arguments
    SHOWS = 5  # a dense tensor over memory of an opaque one, with as many elements as that keeps
    ASKS = 6  # a number


def _of(owner: Any, names: str) -> list[tuple[str, Any]]:
    found = [(f"{owner.__name__}.{name}", getattr(owner, name, None)) for name in names.split()]
    return [(name, func) for name, func in found if func is not None]


_TENSOR, _TORCH, _SPARSE = torch.Tensor, torch, torch.sparse
_METHODS_TOO = (
    "addmm bmm add sub mul div neg abs sqrt square pow sign sin tanh expm1 log1p relu sum index_select dequantize "
    "int_repr"
)

_GROUPS: list[tuple[Rule, list[tuple[str, Any]]]] = [
    (Rule.MULTIPLIES, _of(_TENSOR, "mm matmul __matmul__ mv")),
    (Rule.MULTIPLIES, [*_of(_TORCH, "mm matmul spmm mv"), *_of(_SPARSE, "mm")]),
    (Rule.COMPUTES, [*_of(_TENSOR, _METHODS_TOO), *_of(_TORCH, _METHODS_TOO)]),
    (Rule.COMPUTES, _of(_TENSOR, "__add__ __radd__ __sub__ __mul__ __rmul__ __truediv__ __neg__ coalesce to_dense "
                                 "to_sparse to_sparse_coo to_sparse_csr to_sparse_csc sparse_mask to_mkldnn")),
    (Rule.COMPUTES, _of(_TORCH, "smm hspmm sspaddmm cat stack _sparse_sum quantize_per_tensor "
                                "quantize_per_channel quantize_per_tensor_dynamic")),
    (Rule.COMPUTES, _of(_SPARSE, "addmm softmax log_softmax sampled_addmm spdiags")),
    (Rule.COMPUTES, [("linear", torch.nn.functional.linear)]),
    (Rule.TURNS, _of(_TENSOR, "t transpose clone detach to float double half bfloat16 cpu reshape view flatten")),
    (Rule.TURNS, _of(_TORCH, "t transpose clone detach reshape flatten")),
    (Rule.TURNS, [("Tensor.T", torch.Tensor.T.__get__)]),  # type: ignore[attr-defined]
    (Rule.SHARES, _of(_TORCH, "sparse_coo_tensor sparse_csr_tensor sparse_csc_tensor sparse_compressed_tensor")),
    (Rule.SHOWS, _of(_TENSOR, "values indices _values _indices crow_indices col_indices ccol_indices row_indices")),
    (Rule.ASKS, _of(_TENSOR, "is_coalesced _nnz sparse_dim dense_dim q_scale q_zero_point")),
]  # fmt: skip

# As they were when magpy was imported.
FUNCTIONS: dict[Any, tuple[str, Rule]] = {}
for _rule, _rows in _GROUPS:
    for _name, _func in _rows:
        FUNCTIONS.setdefault(_func, (_name, _rule))
_BY_NAME = {name: func for func, (name, _) in FUNCTIONS.items()}
_RULES = dict(FUNCTIONS.values())
_COALESCE, _IS_COALESCED = "Tensor.coalesce", "Tensor.is_coalesced"

Form = tuple[torch.dtype, torch.layout, tuple[int, ...], Any]  # dtype, layout, sizes, strides or None


def is_opaque(tensor: torch.Tensor) -> bool:
    """Or a twin of such a tensor, see `twin`."""
    return tensor.layout is not torch.strided or tensor.is_quantized or getattr(tensor, "_magpy_opaque", False)


_PARTS: dict[torch.layout, str] = {
    torch.sparse_coo: "_indices _values",
    torch.sparse_csr: "crow_indices col_indices values",
    torch.sparse_bsr: "crow_indices col_indices values",
    torch.sparse_csc: "ccol_indices row_indices values",
    torch.sparse_bsc: "ccol_indices row_indices values",
}


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The dense tensors that an input consists of: itself, unless it is sparse. Raises Unsupported if that is not
    known."""
    if not is_opaque(tensor):
        return [tensor]
    if getattr(tensor, "_magpy_opaque", False):
        return []
    if tensor.layout not in _PARTS:
        raise Unsupported("the memory of a quantised input, beside one that is changed in place")
    return [getattr(tensor, name)() for name in _PARTS[tensor.layout].split()]


def form_of(tensor: torch.Tensor) -> Form:
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.dtype, tensor.layout, tuple(tensor.shape), strides


# -- While a call is recorded -----------------------------------------------------------------------------------------


def look(func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> tuple[Any, str, tuple] | str:
    """func(*args, **kwargs) has given `out`, and something there is opaque: which function replays it, under which
    name, and what it must give again. Or why it cannot be part of a graph."""
    try:
        name, rule = FUNCTIONS[func]
    except (KeyError, TypeError):
        return "of a sparse or quantised tensor"
    tensors = list(_tensors_in((args, kwargs)))
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return "of a sparse tensor under autocast"
    if any(t.device.type != "cpu" for t in tensors):
        return "of a sparse tensor that is not on the CPU"
    if rule is Rule.ASKS:
        if type(out) not in (bool, int, float):
            return "an answer about a sparse tensor"
        return (replay if type(out) is bool else replay_data, name, (out,))
    if type(out) is not torch.Tensor:
        return f"a result of type {type(out).__name__}"
    for i, arg in enumerate(args):
        if out is arg:
            return (replay, name, ("argument", i))
    if any(out is t for t in tensors):
        return "a result that is an argument"
    if rule is Rule.TURNS and not is_opaque(out):
        return "a dense view of a sparse or quantised tensor"
    if out.requires_grad:
        if is_opaque(out) or any(is_opaque(t) and t.requires_grad for t in tensors):
            return "gradients through a sparse or quantised tensor"
        if rule is not Rule.MULTIPLIES or out.is_complex() or not _is_product(args, kwargs):
            return "gradients of what is computed with a sparse tensor, other than a plain product"
    return (replay_data if rule is Rule.SHOWS else replay, name, ("tensor", is_opaque(out), form_of(out)))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _is_product(args: tuple, kwargs: dict[str, Any]) -> bool:
    """One of an opaque matrix and a dense matrix or vector, in either order, of one dtype?"""
    if len(args) != 2 or kwargs or not all(isinstance(t, torch.Tensor) for t in args):
        return False
    a, b = args
    if is_opaque(a) == is_opaque(b) or a.dtype != b.dtype:
        return False
    return (a.dim(), b.dim()) in ((2, 2), (2, 1)) if is_opaque(a) else (a.dim(), b.dim()) == (2, 2)


# -- Replaying --------------------------------------------------------------------------------------------------------


class Opaque:
    """An opaque value of a program that is replayed: nothing but the functions below takes it. `token`: the value of
    the graph, as a tensor without elements. `new`: it is no view of another one, so that it may be a result."""

    __slots__ = ("new", "token")

    def __init__(self, token: torch.Tensor, new: bool = False):
        self.token = token
        self.new = new


def _bare(value: Any) -> Any:
    """The arguments of a step, which is not differentiated."""
    if isinstance(value, Opaque):
        return value.token
    if isinstance(value, torch.Tensor):
        return value.detach() if value.requires_grad else value
    if isinstance(value, (tuple, list)):
        return type(value)([_bare(v) for v in value]) if type(value) in (tuple, list) else list(map(_bare, value))
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items()}
    return value


def _call(text: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], str]:
    """The tensors and the source of a step: `text` has the place {} for the arguments."""
    tensors: list[torch.Tensor] = []
    given = steps.arguments_text(tensors, _bare(args), _bare(kwargs), text)
    tensors = tensors or [torch.zeros(())]  # a step has at least one
    return tensors, f"lambda t: {text.format(given)}"


def replay(name: str, seen: tuple, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
    """The recorded operator: the function of this name, which gives what `look` has seen."""
    kwargs = kwargs or {}
    rule = _RULES[name]
    if rule is Rule.ASKS:
        return _ask(name, args, seen[0])
    if name == _COALESCE:  # whether it gives its argument itself
        _ask(_IS_COALESCED, args, seen[0] == "argument")
    if seen[0] == "argument":
        return args[seen[1]]
    _, opaque, form = seen
    call = f"opaque[{name!r}]({{}})"
    if opaque:
        if rule is Rule.SHARES:
            for tensor in _tensors_in((args, kwargs)):
                _watch(tensor, shown=False)
        token = torch.ops.magpy.opaque(*_call(call, args, kwargs), repr(form))
        return Opaque(token, new=rule is not Rule.TURNS)
    if rule is Rule.SHOWS:
        shown = _dense(*_call(f"opaque['shown']({call}, {form[3]})", args, kwargs), form)
        _watch(shown, shown=True)
        return shown
    given = [t for t in _tensors_in((args, kwargs)) if t.requires_grad]
    if given and torch.is_grad_enabled():
        return _differentiable(call, args, form)
    return _dense(*_call(call, args, kwargs), form)


def replay_data(name: str, seen: tuple, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
    """Likewise, where the results' sizes, or what is answered, follow from data."""
    return replay(name, seen, args, kwargs)


def _ask(name: str, args: Sequence[Any], answer: Any) -> None:
    tensors, source = _call(f"opaque[{name!r}]({{}})", args, {})
    torch.ops.magpy.answers(tensors, source, steps.text_of(answer), type(answer) is not bool)


def _dense(tensors: list[torch.Tensor], source: str, form: Form) -> torch.Tensor:
    dtype, _, sizes, strides = form
    return torch.ops.magpy.sized(tensors, source, repr([(sizes, strides, dtype)]))[0]


class _Product(torch.autograd.Function):
    """A product with an opaque matrix, differentiated by the dense operand alone."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, dense: torch.Tensor, product: Callable[[torch.Tensor], Any], reverse: Callable[[torch.Tensor], Any]
    ) -> torch.Tensor:
        ctx.reverse = reverse
        return product(dense)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:  # type: ignore[override]
        return ctx.reverse(grad), None, None


def _differentiable(call: str, args: Sequence[Any], form: Form) -> torch.Tensor:
    left = isinstance(args[0], Opaque)
    opaque, dense = (args[0], args[1]) if left else (args[1], args[0])
    sizes = tuple(dense.shape)
    # eager's own formulas
    back = "opaque['transposed']({})" if left else "opaque['by transposed']({})"

    def product(x: torch.Tensor) -> torch.Tensor:
        return _dense(*_call(call, (opaque, x) if left else (x, opaque), {}), form)

    def reverse(grad: torch.Tensor) -> torch.Tensor:
        return _dense(*_call(back, (opaque, grad), {}), (form[0], torch.strided, *steps.dense_meta(sizes)))

    return _Product.apply(dense, product, reverse)


def _transposed(matrix: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    turned = matrix.t()
    return turned.mv(grad) if grad.dim() == 1 else turned.mm(grad)


def _by_transposed(matrix: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return grad.mm(matrix.t())


def _shown(memory: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy, since values of a graph have memory of their own."""
    if memory.stride() != strides:
        raise _C.OtherData(True)
    return memory.clone()


# -- Memory in common -------------------------------------------------------------------------------------------------


class _Watched(threading.local):
    """Tensors of the program that this thread replays, which share memory with opaque ones: (tensor, how often it was
    changed, is it memory of an opaque tensor's)."""

    tensors: list[tuple[torch.Tensor, int, bool]] | None = None


_watched = _Watched()


def _watch(tensor: torch.Tensor, shown: bool) -> None:
    if _watched.tensors is None or not torch._is_functional_tensor(tensor):
        raise Unsupported("memory that a sparse tensor shares")
    _watched.tensors.append((tensor, _changes(tensor), shown))


def _changes(tensor: torch.Tensor) -> int:
    return torch._functionalize_mutation_counter(tensor)  # type: ignore[attr-defined]


@contextlib.contextmanager
def watching(outs: list[Any]) -> Iterator[None]:
    """Around a program that is replayed; `outs` are its outputs at the end. Raises Unsupported where a graph would not
    share memory as the program does."""
    before, _watched.tensors = _watched.tensors, []
    try:
        yield
        _check_watched(_watched.tensors, outs)
    finally:
        _watched.tensors = before


def _check_watched(tensors: list[tuple[torch.Tensor, int, bool]], outs: list[Any]) -> None:
    for tensor, changes, _ in tensors:
        if _changes(tensor) != changes:
            raise Unsupported("a change in place of memory that a sparse tensor shares")
    opaque = [out for out in outs if isinstance(out, Opaque)]
    if not all(out.new for out in opaque):
        raise Unsupported("a result that is a view of a sparse or quantised tensor")
    shared = {tensor.untyped_storage()._cdata for tensor, _, shown in tensors if shown or opaque}
    for out in outs:
        if isinstance(out, torch.Tensor) and shared and out.untyped_storage()._cdata in shared:
            raise Unsupported("a result that shares memory with a sparse tensor")


def twin(mode: Any, device: torch.device) -> torch.Tensor:
    """What stands for an opaque input in a trace."""
    from torch._subclasses.fake_tensor import FakeTensor

    made = FakeTensor(mode, torch.empty(0, dtype=torch.uint8, device="meta"), device)
    made._magpy_opaque = True  # type: ignore[attr-defined]
    return made


# -- Steps ------------------------------------------------------------------------------------------------------------


def _opaque(tensors: list[torch.Tensor], source: str, form: str) -> torch.Tensor:
    made = steps.function_of(source)(tensors)
    if type(made) is not torch.Tensor or form_of(made) != steps.parsed(form):
        raise _C.OtherData(False)
    return made


def _opaque_meta(tensors: list[torch.Tensor], source: str, form: str) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensors[0].device)


def _answers(tensors: list[torch.Tensor], source: str, answer: str, value: bool) -> None:
    if steps.text_of(steps.function_of(source)(tensors)) != answer:
        raise _C.OtherData(value)


def _answers_meta(tensors: list[torch.Tensor], source: str, answer: str, value: bool) -> None:
    return None


steps.NAMES["opaque"] = {
    **_BY_NAME,
    "shown": _shown,
    "transposed": _transposed,
    "by transposed": _by_transposed,
}
steps.define("opaque(Tensor[] tensors, str source, str form) -> Tensor", _opaque, _opaque_meta)
steps.define("answers(Tensor[] tensors, str source, str answer, bool value) -> ()", _answers, _answers_meta)
_C._opaque_tables(look, replay_data)
