"""The program `mint-train`, which Ctrl-C ends quietly while it is still being imported."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""As in `errors`, which takes a moment to import too."""


def run() -> None:
    """Run the command line."""
    try:
        from mint_train.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("mint-train: interrupted\n")
        sys.exit(INTERRUPTED)
    main()


if __name__ == "__main__":
    run()
