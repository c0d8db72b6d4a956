"""Let the benchmarks, which are scripts and no package, import each other when pytest collects them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
