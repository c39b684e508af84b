"""`python -m ssmn`: the command line."""

import sys

from ssmn.cli import main

sys.exit(main())
