"""`python -m forwardpass`, and the command `forwardpass`."""

import sys

from forwardpass.cli import main as run


def main() -> None:
    """Run the command line, and exit with its code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
