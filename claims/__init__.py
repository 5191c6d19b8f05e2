"""Published claims about weight decay, each measured by a small program: `python -m claims.run`, or `make claims`."""

import pathlib
import sys

# The examples' modules for intervals, pictures, console and data.
sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))
