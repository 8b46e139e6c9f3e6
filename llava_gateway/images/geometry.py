"""Image sizes and token counts of models that see images in their own shape (LLaVA-NeXT, LLaVA-OneVision), and token counts of videos.

The model has several grids of squares. It fits an image into the grid that keeps most of the image's pixels. The number of tokens depends
on the area of the grid that the image covers. An image that is larger than this area is shrunk here rather than in the engine. Shrinking
changes neither the grid nor the number of tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Size = tuple[int, int]
"""Width and height, in pixels."""


def best_grid(size: Size, grids: Sequence[Size]) -> Size:
    """Return the grid that keeps most of the image's pixels, as LLaVA-NeXT chooses it.

    Of several such grids the smallest is returned. `size`: of the image. `grids`: width and height of each, in pixels.
    """

    def value(grid: Size) -> tuple[int, int]:
        scale = min(grid[0] / size[0], grid[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, -grid[0] * grid[1]

    return max(grids, key=value)


def shrunk(size: Size, grids: Sequence[Size], tokens: Callable[[int, int], int]) -> Size:
    """Return the smallest size that leaves the image's grid and its number of tokens unchanged.

    An image that is not larger than its grid keeps its size. `tokens`: counts the tokens of an image by its width and height.
    """
    grid = best_grid(size, grids)
    if size[0] <= grid[0] and size[1] <= grid[1]:
        return size
    for rounding in (math.ceil, math.floor):  # up, like the processors; down if one more row of pixels would add a row of tokens
        fitted = _fit(size, grid, rounding)
        if best_grid(fitted, grids) == grid and tokens(*fitted) == tokens(*size):
            return fitted
    return size


def _fit(size: Size, grid: Size, rounding: Callable[[float], int]) -> Size:
    """Return the size of the image scaled to fit the grid."""
    scale_x, scale_y = grid[0] / size[0], grid[1] / size[1]
    if scale_x < scale_y:
        return grid[0], max(1, min(rounding(size[1] * scale_x), grid[1]))
    return max(1, min(rounding(size[0] * scale_y), grid[0])), grid[1]


@dataclass(frozen=True)
class ImageTokens:
    """Counts the tokens of an image, as LLaVA, LLaVA-NeXT and LLaVA-OneVision define it.

    An image takes the features of the whole image in one square. With grids it also takes the features of the squares of its grid, without
    those of the padding, and one newline token after each row of features.
    """

    whole: int
    """The number of tokens of the whole image in one square."""
    side: int
    """The side of a square, in pixels."""
    patches: int
    """The number of features along the side of a square of a grid."""
    grids: tuple[Size, ...] = ()
    """The width and height of each grid, in pixels. Empty if the model sees an image as one square."""
    max_squares: int | None = None
    """If a grid has more features than this number of squares, its features are scaled down to about that number (`anyres_max_9`)."""

    def __call__(self, width: int, height: int) -> int:
        """Return the number of tokens of an image. `width` and `height`: in pixels."""
        if not self.grids:
            return self.whole
        columns, rows = self._features(best_grid((width, height), self.grids))
        # Floats in this order of operations: an image near the edge of a patch must be rounded as in the model.
        if width / height > columns / rows:
            rows = _without_padding(rows, height * (columns / width))
        else:
            columns = _without_padding(columns, width * (rows / height))
        if self.max_squares:
            excess = math.sqrt(columns * rows / (self.max_squares * self.patches**2))
            if excess > 1.1:
                columns, rows = int(columns // excess), int(rows // excess)
        return self.whole + rows * (columns + 1)

    @property
    def max_image_tokens(self) -> int:
        """The greatest number of tokens of an image. An image that fills its grid as far as its shape allows takes the most."""
        pixels = self.side / self.patches
        sizes = {
            (math.ceil(columns * pixels), math.ceil(rows * pixels)) for grid in self.grids for columns, rows in self._covered_features(grid)
        }
        return max((self(*size) for size in sizes), default=self.whole)

    def _covered_features(self, grid: Size) -> Iterator[tuple[int, int]]:
        """Yield the columns and rows that an image can cover if it touches two opposite sides of the grid."""
        columns, rows = self._features(grid)
        yield from ((columns, covered) for covered in range(1, rows + 1))
        yield from ((covered, rows) for covered in range(1, columns + 1))

    def _features(self, grid: Size) -> tuple[int, int]:
        """Return the columns and rows of the grid's features."""
        width, height = grid
        return width // self.side * self.patches, height // self.side * self.patches


@dataclass(frozen=True)
class VideoTokens:
    """Counts the tokens of a video, as LLaVA-OneVision and LLaVA-NeXT-Video define it."""

    per_frame: int
    """The number of tokens of a frame: 196 for LLaVA-OneVision, 144 for LLaVA-NeXT-Video."""
    newlines: int
    """The number of tokens after the last frame: 1 for LLaVA-OneVision, 0 for LLaVA-NeXT-Video."""

    def __call__(self, frames: int) -> int:
        """Return the number of tokens of a video with this number of frames."""
        return self.per_frame * frames + self.newlines

    def fitting_frames(self, frames: int, max_tokens: int) -> int:
        """Return the number of frames, lowered to those that `max_tokens` have room for. It is at least 1."""
        return max(1, min(frames, (max_tokens - self.newlines) // self.per_frame))


def _without_padding(features: int, covered: float) -> int:
    """Return the number of features that remain along a side without padding.

    `features`: along the whole side. `covered`: by the image. The same number is removed at both ends, so one feature of the padding may
    remain.
    """
    return features - 2 * ((features - int(round(covered, 7))) // 2)
