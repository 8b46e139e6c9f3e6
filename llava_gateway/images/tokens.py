"""How many tokens of the context a picture takes, from its size alone: without the engine, which may run in another process."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llava_gateway.images.grids import Size, best_grid


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
    most_squares: int | None = None
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
        if self.most_squares:
            excess = math.sqrt(columns * rows / (self.most_squares * self.patches**2))
            if excess > 1.1:
                columns, rows = int(columns // excess), int(rows // excess)
        return self.whole + rows * (columns + 1)

    @property
    def most(self) -> int:
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
