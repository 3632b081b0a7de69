"""`python -m bcnet` is `bcnet`."""

import sys

from bcnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
