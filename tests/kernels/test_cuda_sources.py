"""Every kernel's CUDA source is accepted by NVRTC for sm_90. No GPU is needed or used."""

import ctypes
import glob
import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from harness import Description, trace  # noqa: E402
from test_ops import CASES, make_input  # noqa: E402

from magpy import _C  # noqa: E402


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    """libnvrtc of the wheel nvidia-cuda-nvrtc."""
    nvidia = pytest.importorskip("nvidia")
    for folder in nvidia.__path__:
        for path in sorted(glob.glob(os.path.join(folder, "**", "libnvrtc.so*"), recursive=True)):
            return ctypes.CDLL(path)
    pytest.skip("no libnvrtc")


def compile_cuda(nvrtc: ctypes.CDLL, source: str) -> str:
    """NVRTC's log, empty if it accepts the source."""
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"k.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90", b"--std=c++17")
    status = nvrtc.nvrtcCompileProgram(program, 2, options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() + f"status {status}" if status else ""


def test_nvrtc_rejects_what_is_wrong(nvrtc):
    assert compile_cuda(nvrtc, "not C") != ""


@pytest.mark.unsanitized  # the sanitizer's dlopen does not find libnvrtc-builtins beside NVRTC
def test_all_kernels_of_the_operator_table_compile(nvrtc):
    # one translation unit of all kernels: NVRTC's start-up is most of its time
    prelude, bodies, n = None, [], 0
    generator = torch.Generator().manual_seed(0)
    for case in CASES:
        for dtype in case.dtypes:
            inputs = [make_input(shape, dtype, case, generator) for shape in case.shapes]
            description = Description(trace(case.fn, inputs))
            schedule = _C._schedule(tuple(description.nodes), description.outputs)
            for kernel in schedule["kernels"]:
                assert kernel["cuda_source"] is not None
                assert kernel["cuda_grid"] >= 1 and kernel["cuda_block"] >= 1
                at = kernel["cuda_source"].index('extern "C"')
                prelude = kernel["cuda_source"][:at]
                bodies.append(kernel["cuda_source"][at:].replace(f" {kernel['name']}(", f" {kernel['name']}_{n}("))
                n += 1
    assert n > 300
    assert compile_cuda(nvrtc, prelude + "\n".join(bodies)) == ""
