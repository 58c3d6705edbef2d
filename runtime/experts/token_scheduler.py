"""Token scheduler: regroups the sequences of two adjacent batches, so that each batch touches fewer experts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import ScheduleError

MAX_ITERATIONS = 8
MAX_SWAPS = 12
SWAP_CANDIDATES = 3  # of either batch and round

Rows = NDArray[np.intp]
Paths = NDArray[np.bool_]  # [B, L, E]: whether a sequence's next token touches an expert
_Floats = NDArray[np.float32]


def regroup(paths: Paths, sizes: tuple[int, int]) -> tuple[Rows, Rows]:
    """Splits the sequences of two adjacent batches anew, into batches of the same sizes.

    paths: bool [B, L, E], predicted; the first sizes[0] rows are the first batch, the others the second. Returns the
    rows of either batch, ascending. The sum of distinct experts is never above that of the batches given.

    ExpertFlow's token scheduling (arXiv 2410.17954): two-means over the paths, balanced, with medoids as centres,
    similarity 1 - Hamming distance / (L E), at most MAX_ITERATIONS rounds. Added: it starts from the given batches and
    from the two least similar sequences, and keeps what has the fewest distinct experts; then at most MAX_SWAPS swaps
    lower that number, which similarity only stands in for.

    Raises:
        ScheduleError: paths that are not bool [B, L, E], or sizes that are not two batches of them.
    """
    _check(paths, sizes)
    touches = paths.reshape(len(paths), -1).astype(np.float32)
    given = np.arange(len(paths)) < sizes[0]
    first = _swapped(touches, _clustered(touches, given))
    if sizes[0] == sizes[1] and (first & given).sum() < (~first & given).sum():
        first = ~first  # the same batches, with fewer sequences to move
    return np.flatnonzero(first), np.flatnonzero(~first)


def distinct_experts(paths: Paths, groups: Sequence[Rows]) -> NDArray[np.int64]:
    """How many experts of a layer the sequences of a group touch: [groups, L]."""
    return np.array([paths[rows].any(axis=0).sum(axis=-1) for rows in groups], dtype=np.int64)


def _check(paths: Paths, sizes: tuple[int, int]) -> None:
    if paths.ndim != 3 or paths.dtype != np.bool_ or not paths[:1].size:
        raise ScheduleError(f"token scheduler: paths must be bool [sequences, layers, experts], not {_describe(paths)}")
    if len(sizes) != 2 or min(sizes) < 1 or sum(sizes) != len(paths):
        raise ScheduleError(
            f"token scheduler: batches of {' and '.join(map(str, sizes))} for {len(paths)} sequences; give two sizes, "
            "of 1 or more, that sum to the sequences"
        )


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"


def _clustered(touches: _Floats, given: Paths) -> Paths:
    """The split with the fewest distinct experts: the given one, or by two-means from either start."""
    similarity = _similarity(touches)
    one, other = divmod(int(similarity.argmin()), len(similarity))
    starts = [(_medoid(similarity, given), _medoid(similarity, ~given)), (one, other), (other, one)]
    splits = [given, *(_two_means(similarity, start, int(given.sum())) for start in starts)]
    return min(splits, key=lambda first: _distinct(touches, first))


def _similarity(touches: _Floats) -> _Floats:
    """1 - Hamming distance / (L E), [B, B]."""
    common = touches @ touches.T
    own = common.diagonal()
    similarity: _Floats = 1 - (own[:, None] + own - 2 * common) / np.float32(touches.shape[1])
    return similarity


def _two_means(similarity: _Floats, centres: tuple[int, int], size: int) -> Paths:
    """Balanced two-means; True: the first cluster, of `size` sequences."""
    first = _assigned(similarity, centres, size)
    for _ in range(MAX_ITERATIONS):
        again = _assigned(similarity, (_medoid(similarity, first), _medoid(similarity, ~first)), size)
        if (again == first).all():
            break
        first = again
    return first


def _assigned(similarity: _Floats, centres: tuple[int, int], size: int) -> Paths:
    """The `size` sequences that lean most towards the first centre."""
    leaning = similarity[centres[0]] - similarity[centres[1]]
    first = np.zeros(len(leaning), dtype=np.bool_)
    first[np.argsort(-leaning, kind="stable")[:size]] = True
    return first


def _medoid(similarity: _Floats, members: Paths) -> int:
    """The member that is most similar to all of them."""
    rows = np.flatnonzero(members)
    return int(rows[similarity[np.ix_(rows, rows)].sum(axis=1).argmax()])


def _distinct(touches: _Floats, first: Paths) -> int:
    return sum(int(np.count_nonzero(touches[side].sum(axis=0))) for side in (first, ~first))


def _swapped(touches: _Floats, first: Paths) -> Paths:
    """Swaps two sequences at a time as long as that lowers the distinct experts."""
    first = first.copy()
    users, others = touches[first].sum(axis=0), touches[~first].sum(axis=0)  # [L E]: sequences that touch an expert
    for _ in range(MAX_SWAPS):
        swap = _best_swap(touches, first, users, others)
        if swap is None:
            break
        out, into = swap
        step = touches[into] - touches[out]
        users, others = users + step, others - step
        first[out], first[into] = False, True
    return first


def _best_swap(touches: _Floats, first: Paths, users: _Floats, others: _Floats) -> tuple[int, int] | None:
    """The best of the swaps among those sequences of either side that had better leave alone; None if none helps."""
    # experts that fall away on leaving, and that are new on arriving, on either side
    changes = touches @ np.stack((users == 1, others == 0, others == 1, users == 0), axis=1).astype(np.float32)
    leaving, joining = np.flatnonzero(first), np.flatnonzero(~first)
    out = leaving[np.argsort((changes[:, 1] - changes[:, 0])[leaving], kind="stable")[:SWAP_CANDIDATES]]
    into = joining[np.argsort((changes[:, 3] - changes[:, 2])[joining], kind="stable")[:SWAP_CANDIDATES]]
    step = touches[into][None] - touches[out][:, None]
    distinct = np.count_nonzero(users + step, axis=-1) + np.count_nonzero(others - step, axis=-1)
    best = int(distinct.argmin())
    if distinct.flat[best] >= np.count_nonzero(users) + np.count_nonzero(others):
        return None
    return int(out[best // len(into)]), int(into[best % len(into)])
