"""`python -m evit_kernels`: what is available here, and why the rest is not.

Ends with 1 when the compiled core is there and does not load, else with 0.
"""

from __future__ import annotations

import sys

from evit_kernels import report


def main() -> int:
    """Prints the report and returns the exit code."""
    state = report.collect()
    print(state)
    return 0 if state.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
