"""Where the built site is, and where its screenshots go."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
SITE = pathlib.Path(os.environ.get("SITE", ROOT / "out" / "site"))
SCREENSHOTS = ROOT / "out" / "screenshots"
