import sys

from cdgen.cli import main

sys.exit(main())
