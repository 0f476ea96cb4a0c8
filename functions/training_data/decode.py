"""Decoders of stored fields: pictures to arrays of pixels, by Pillow, which leaves the interpreter free while it decodes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from toque.functions.training_data.errors import SampleSetError
from toque.functions.training_data.formats import Values


@dataclass(frozen=True, slots=True)
class DecodeImages:
    """Decodes a field of encoded pictures (PNG, JPEG and what else Pillow reads) to (rows, height, width, channels) uint8.

    size: height and width that all are brought to, bilinearly; None if they have one size already. channels: 3 for colours,
    1 for grey levels.
    """

    field: str
    size: tuple[int, int] | None = None
    channels: int = 3

    def __call__(self, columns: dict[str, Values]) -> dict[str, Values]:
        """Replace the field by its pixels. Raises: SampleSetError for what is no picture."""
        pixels = [self._decoded(data, number) for number, data in enumerate(columns[self.field])]
        shapes = {each.shape for each in pixels}
        if len(shapes) > 1:
            raise SampleSetError(
                f"pictures of {self.field!r} have several sizes, {sorted(shapes)[:3]}: give size="
            )
        nothing = np.empty((0, *(self.size or (0, 0)), self.channels), dtype=np.uint8)
        return columns | {self.field: np.stack(pixels) if pixels else nothing}

    def _decoded(self, data: bytes, number: int) -> Values:
        from PIL import Image, UnidentifiedImageError  # late: few processes read pictures

        mode = "L" if self.channels == 1 else "RGB"
        try:
            with Image.open(io.BytesIO(data)) as opened:
                if self.size is not None:  # a JPEG is decoded at a fraction of its size that suffices
                    opened.draft(mode, (self.size[1], self.size[0]))
                picture = opened.convert(mode)
        except (UnidentifiedImageError, OSError, TypeError) as error:
            raise SampleSetError(
                f"field {self.field!r} of a batch's sample {number} is no picture: {error}"
            ) from error
        if self.size is not None and picture.size != (self.size[1], self.size[0]):
            picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        return pixels[:, :, None] if self.channels == 1 else pixels
