"""Pictures for models that see them in their own shape (LLaVA-NeXT, LLaVA-OneVision): such a model lays a picture out on the one of its
grids that keeps most of it, and takes as many tokens as the picture covers there. What is larger than its place on the grid is shrunk to
it here, so that the engine need not; the grid and the tokens stay those of the picture as it came.
"""

import math
from collections.abc import Callable, Sequence

Size = tuple[int, int]
"""Width and height, in pixels."""


def best_grid(size: Size, grids: Sequence[Size]) -> Size:
    """The grid on which most of the picture's pixels are kept, and of several such the one with the least room left (LLaVA-NeXT)."""

    def value(grid: Size) -> tuple[int, int]:
        scale = min(grid[0] / size[0], grid[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, -grid[0] * grid[1]

    return max(grids, key=value)


def shrunk(size: Size, grids: Sequence[Size], tokens: Callable[[int, int], int]) -> Size:
    """The least size that a picture may be given to the engine with; its own if it is not larger than its place on the grid."""
    grid = best_grid(size, grids)
    if size[0] <= grid[0] and size[1] <= grid[1]:
        return size
    for whole in (math.ceil, math.floor):  # up, as the processors do it; down where a row of pixels more would be a row of tokens more
        place = _place(size, grid, whole)
        if best_grid(place, grids) == grid and tokens(*place) == tokens(*size):
            return place
    return size


def _place(size: Size, grid: Size, whole: Callable[[float], int]) -> Size:
    across, down = grid[0] / size[0], grid[1] / size[1]
    if across < down:
        return grid[0], max(1, min(whole(size[1] * across), grid[1]))
    return max(1, min(whole(size[0] * down), grid[0])), grid[1]
