"""Label Studio's run-length encoding of a brush mask, which is not COCO's: bits over the mask's rows, as four equal bytes a pixel.

Source: thi.ng's rle-pack, from which Label Studio's front end took it (packages/rle-pack/src/index.ts). The stream is 32 bits of the
number of bytes, 5 of the word size less 1, four times 4 of a size less 1, then of each run: 1 (a run, not single words), 2 (which of the
sizes), the size's bits of its length less 1, 8 of its value. Label Studio's own encoder adds a byte of zeros where nothing is to be filled.
"""

import numpy as np

_SIZES = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16
_HEADER_BITS = 32 + 5 + 4 * 4


def encode_brush(mask: np.ndarray) -> list[int]:
    """bool (H, W) -> bytes, each 0 to 255, the same as `label_studio_sdk.converter.brush.mask2rle` gives for `mask * 255`."""
    flat = np.asarray(mask, dtype=bool).ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = np.diff(ends, prepend=0) * 4
    values = flat[ends - 1] * 255
    num_full = (lengths - 1) // _LONGEST  # a longer run is cut into full ones and a rest of 1 to 65,536
    first = np.cumsum(num_full + 1) - 1  # where the rest of each run stands
    pieces = np.full(first[-1] + 1, _LONGEST)
    pieces[first] = lengths - num_full * _LONGEST
    piece_values = np.repeat(values, num_full + 1)
    kind = np.where(np.repeat(num_full > 0, num_full + 1), 3, np.searchsorted([8, 16, 256], pieces))  # a rest is written like its run
    num_bits = 3 + _SIZES[kind] + 8
    words = (((4 + kind) << _SIZES[kind] | pieces - 1) << 8) | piece_values
    place = _HEADER_BITS + np.cumsum(num_bits) - num_bits
    total = _HEADER_BITS + int(num_bits.sum())
    bits = np.zeros(total + 8 - total % 8, dtype=bool)
    header = (flat.size * 4) << 21 | 7 << 16 | int("".join(f"{size - 1:04b}" for size in _SIZES), 2)
    bits[:_HEADER_BITS] = [header >> shift & 1 for shift in range(_HEADER_BITS - 1, -1, -1)]
    for shift in range(int(num_bits.max())):  # the last bit of every word, the one before it, …
        has = num_bits > shift
        bits[(place + num_bits - 1 - shift)[has]] = (words >> shift & 1)[has]
    return np.packbits(bits).tolist()
