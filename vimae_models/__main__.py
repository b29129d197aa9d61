"""The command `vimae`."""

from __future__ import annotations

import importlib.util
import sys

# What the command needs beyond the package: the modules of the extra [models].
_NEEDED = ("jsonargparse", "lightning", "matplotlib", "PIL", "rich", "sklearn", "tensorboard")


def main() -> None:
    """Run the command line, or say what to install for it."""
    missing = [module for module in _NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(
            f"vimae needs packages that are not installed: {', '.join(missing)}. Install them by\n"
            "    pip install 'vimae-kernels[models]'\n"
            "or, from a checkout of the source, by\n"
            "    pip install -e '.[models]'"
        )
    from .cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
