"""`python -m bcnet` is `bcnet`."""

import sys

from bcnet.cli import main

sys.exit(main())
