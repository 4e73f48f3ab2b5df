"""seaborn without scipy, as `sns`.

seaborn imports scipy if it is installed, for `clustermap` and for kernel densities. That takes ten times as long as
seaborn itself, and this project draws no such chart. While seaborn is imported here, scipy counts as not installed.
"""

import sys

if hides_scipy := "scipy" not in sys.modules:
    sys.modules["scipy"] = None
import seaborn as sns

if hides_scipy:
    del sys.modules["scipy"]

__all__ = ["sns"]
