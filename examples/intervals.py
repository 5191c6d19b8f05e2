"""Student's t intervals for means over seeds, and the verdicts that follow."""

from typing import Any

import numpy as np
from scipy import special  # scipy.stats takes longer to import

FEWEST = 3  # seeds needed for a verdict: with two, a single run decides the width of the interval
MEANING = "± is half of the mean's 95 % interval (Student's t)"


def half_width(runs: Any) -> Any:
    """Half of the 95 % interval of the mean over the first axis: t·s/√n, t with n − 1 degrees of freedom.

    >>> float(half_width([1.0, 3.0]))  # s = √2, and t = 12.7 with one degree of freedom; a standard error would be 1
    12.706204736174694
    """
    return special.stdtrit(len(runs) - 1, 0.975) * (np.std(runs, axis=0, ddof=1) / len(runs) ** 0.5)


def mean(runs: Any, digits: str = ".2f") -> str:
    """Formats mean ± half-width of the 95 % interval, runs.shape=(n,).

    >>> mean([1.0, 2.0, 3.0], "+.1f")
    '+2.0 ± 2.5'
    """
    return f"{np.mean(runs):{digits}} ± {half_width(runs):{digits.replace('+', '')}}"


def clear(gaps: Any) -> bool:
    """Whether the 95 % interval of the mean paired difference, gaps.shape=(n,), excludes 0; needs `FEWEST` seeds."""
    return len(gaps) >= FEWEST and bool(abs(np.mean(gaps)) > half_width(gaps))


def verdict(gaps: Any) -> str:
    """Whether the paired differences are significant, in words.

    >>> verdict([1.0, 1.1, 0.9, 1.0]), verdict([1.0, -1.1, 0.9, -1.0]), verdict([1.0, 1.1])
    ('significant at 5 %', 'not significant at 5 %', 'no verdict from 2 seeds')
    """
    if len(gaps) < FEWEST:
        return f"no verdict from {len(gaps)} seeds"
    return f"{'significant' if clear(gaps) else 'not significant'} at 5 %"


def change(gaps: Any, digits: str = "+.2f") -> str:
    """Formats the mean paired difference, its interval and the verdict.

    >>> change([1.0, 1.1, 0.9, 1.0])
    '+1.00 ± 0.13, significant at 5 %'
    """
    return f"{mean(gaps, digits)}, {verdict(gaps)}"
