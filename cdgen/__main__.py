"""`python -m cdgen` is the command `cdgen`."""

import sys

from cdgen.cli import main

sys.exit(main())
