"""Bounds by which the largest logit is found without most of the products: what ``lm_argmax`` may rely on.

For a row w of the head, its row u of ``screen`` and the rows q_i of ``basis`` (Q), and for an input x with p = Q x
and p' what p is rounded to::

    w.x = u.p' + u.(p - p') + r.y + (Q r).p        with r = w - Q^T u,  y = x - Q^T p

so |w.x - u.p'| <= |u| |p - p'| + |r| |y| + |Q r| |p| by the Cauchy-Schwarz inequality, whatever Q is; it is sharp where
Q is nearly orthonormal and u nearly Q w, since r is then small and Q r smaller.  :func:`reach_of` adds what rounding in
f32 can do to each side (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1: a sum of n products is
within n u / (1 - n u) of the sum of their magnitudes, u = 2^-24, in any order).  Products that underflow, with |w| |x|
below 1e-36, are not provided for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["holds", "reach_of"]

Floats = NDArray[np.floating[Any]]

_UNIT = 2.0**-24
#: what is added for the arithmetic of the bound itself
_MARGIN = 1.0 + 2.0**-18


def reach_of(w: Floats, basis: Floats, screen: Floats) -> NDArray[np.float32]:
    """Return f32 [3, V]: of |y|, of |p - p'| and of |x| in the bound of each row.

    Args:
        w: [V, D], the head's rows as products read them.
        basis: [r, D].
        screen: [V, r], decoded.
    """
    rows, count = np.asarray(w, np.float64), basis.shape[0]
    q, u = np.asarray(basis, np.float64), np.asarray(screen, np.float64)
    rest = rows - u @ q
    size, lengths, left = (np.sqrt(np.square(a).sum(1)) for a in (rows, u, rest))
    across = np.sqrt(np.square(rest @ q.T).sum(1))
    root = np.sqrt(np.square(q).sum())  # of Q, and of |Q|: what either can make of a vector's length
    wide, deep = (q.shape[1] + 32) * 2 * _UNIT, (count + 32) * 2 * _UNIT
    stretch = max(np.linalg.norm(q, 2), 1.0)
    of_x = (
        across * stretch  # (Q r).p
        + wide * size  # the head's own product
        + wide * root * lengths  # p
        + deep * (1.0 + root * stretch) * left  # y
        + 2 * deep * stretch * lengths  # u.p', and the bound
    )
    found = np.stack([left, lengths, of_x]) * _MARGIN
    return np.nextafter(found.astype(np.float32), np.float32(np.inf))


def holds(w: Floats, basis: Floats, screen: Floats, reach: Floats) -> bool:
    """Whether ``reach`` bounds these rows."""
    return bool((np.asarray(reach, np.float32) >= reach_of(w, basis, screen)).all())
