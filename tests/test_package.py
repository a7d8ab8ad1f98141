"""The package itself: the extension imports and is linked against nothing but the C library."""

import subprocess

import magpy._C
import pytest


@pytest.mark.unsanitized  # a sanitized extension links the sanitizers' libraries
def test_extension_links_neither_torch_nor_cxx():
    out = subprocess.run(["ldd", magpy._C.__file__], capture_output=True, text=True, check=True).stdout
    assert "torch" not in out and "stdc++" not in out
