"""Build magpy._C, a CPython extension in C11. torch is not needed to build."""

import os
from glob import glob

from setuptools import Extension, setup

sources = sorted(glob("csrc/**/*.c", recursive=True))
headers = sorted(glob("csrc/**/*.h", recursive=True))

flags = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
    "-fvisibility=hidden",
]
link = ["-ldl"]
if os.environ.get("MAGPY_DEBUG") or os.environ.get("MAGPY_SANITIZE"):  # internal checks, and CPython's type checks
    flags += ["-UNDEBUG", "-DMP_DEBUG", "-g"]
if os.environ.get("MAGPY_SANITIZE"):
    flags.remove("-Werror")  # instrumented code gives gcc false warnings
    flags += ["-O1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link += ["-fsanitize=address,undefined"]

setup(
    ext_modules=[
        Extension(
            "magpy._C",
            sources,
            include_dirs=["csrc"],
            depends=headers,
            extra_compile_args=flags,
            extra_link_args=link,
        )
    ]
)
