"""Which kernels of our own can be compiled here."""

from __future__ import annotations

import functools
import threading

from magpy import _C


@functools.cache
def usable() -> bool:
    """Can kernels be compiled here?"""
    return hasattr(_C, "compile_graph") and _C.compiler_usable()


@functools.cache
def _library() -> threading.Thread | None:
    """The thread that compiles the library of convolutions or finds it in the kernel cache, None without a compiler."""
    if not usable():
        return None
    thread = threading.Thread(target=_C.convolutions_usable, name="magpy: library of convolutions", daemon=True)
    thread.start()
    return thread


def expect_convolutions() -> None:
    """A convolution was seen: the library, which takes a second to compile the first time, will be asked for."""
    _library()


@functools.cache
def convolutions_usable() -> bool:
    """Can convolutions of our own be compiled here? Waits until the library is there."""
    thread = _library()
    if thread is None:
        return False
    thread.join()
    return _C.convolutions_usable()
