"""Pictures for models that see them in their own shape (LLaVA-NeXT, LLaVA-OneVision): such a model lays a picture out on the one of its
grids that keeps most of it, and takes as many tokens as the picture covers there. What is larger than its place on the grid is shrunk to
it here, so that the engine need not; the grid and the tokens stay those of the picture as it came.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class ImageTokens:
    """A model's count, as LLaVA, LLaVA-NeXT and LLaVA-OneVision define it: the features of the whole picture in one square; with grids also
    those of the squares of its grid, less the padding's, and a newline's token after each row of them.
    """

    whole: int
    """Tokens of the whole picture in one square."""
    side: int
    """Pixels of such a square."""
    patches: int
    """Features along the side of a square of a grid."""
    grids: tuple[Size, ...] = ()
    """Width and height of each, in pixels; none if all that the model sees of a picture is one square."""
    max_squares: int | None = None
    """A grid's features are scaled down to about those of so many squares, where there are more (OneVision's `anyres_max_9`)."""

    def __call__(self, width: int, height: int) -> int:
        """Of a picture of this size in pixels."""
        if not self.grids:
            return self.whole
        columns, rows = self._features(best_grid((width, height), self.grids))
        # In floats, and in this order: a picture near the edge of a patch must round here as it rounds in the model.
        if width / height > columns / rows:
            rows = _unpadded(rows, height * (columns / width))
        else:
            columns = _unpadded(columns, width * (rows / height))
        if self.max_squares:
            excess = math.sqrt(columns * rows / (self.max_squares * self.patches**2))
            if excess > 1.1:
                columns, rows = int(columns // excess), int(rows // excess)
        return self.whole + rows * (columns + 1)

    @property
    def max_image_tokens(self) -> int:
        """No picture takes more. Found among those that fill a grid as far as their shape lets them: none does more than that."""
        pixels = self.side / self.patches
        sizes = {(math.ceil(columns * pixels), math.ceil(rows * pixels)) for grid in self.grids for columns, rows in self._reached(grid)}
        return max((self(*size) for size in sizes), default=self.whole)

    def _reached(self, grid: Size) -> Iterator[tuple[int, int]]:
        columns, rows = self._features(grid)
        yield from ((columns, covered) for covered in range(1, rows + 1))
        yield from ((covered, rows) for covered in range(1, columns + 1))

    def _features(self, grid: Size) -> tuple[int, int]:
        """Columns and rows of them."""
        width, height = grid
        return width // self.side * self.patches, height // self.side * self.patches


def _unpadded(features: int, covered: float) -> int:
    """Features that stay along a side of which the picture covers so many; as many go at either end, so one of the padding's may stay."""
    return features - 2 * ((features - int(round(covered, 7))) // 2)
