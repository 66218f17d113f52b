"""`python -m evit_models.cli`: the same as `evit`."""

import sys

from evit_models.cli import main

if __name__ == "__main__":
    sys.exit(main())
