"""python -m magpy: the version, and the kernel cache on disk."""

from __future__ import annotations

import argparse
import sys

import magpy


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="magpy", description="magpy, a torch.compile backend")
    parser.add_argument("--version", action="version", version=f"magpy {magpy.__version__}")
    parser.add_argument("--options", action="store_true", help="list the options of torch.compile(..., options={...})")
    args = parser.parse_args(arguments)
    if args.options:
        from magpy import config

        print(config.describe())
        return 0
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main())
