"""`python -m cdgen` is the command `cdgen`."""

import sys


def main() -> int:
    """Run the command line of this process; return the exit code."""
    try:
        from cdgen.cli import app
    except KeyboardInterrupt:  # Ctrl-C during the imports
        return 130
    return app.main()


if __name__ == "__main__":
    sys.exit(main())
