"""Resolution bins: the sizes that the published models were trained at, by aspect ratio (5.3).

A size between them can be asked for all the same: the picture is drawn at the bin of the nearest
ratio, scaled until it covers the size, and cut to it about its centre.
"""

from opensana.errors import RequestError

Size = tuple[int, int]
"""Width and height in pixels."""

# (height, width) at 1024 px; the other tables are these times 1/2, 2 and 4.
LANDSCAPES = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664),
    (640, 1600), (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280),
    (832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024),
)  # fmt: skip
PORTRAITS = (
    (1024, 960), (1088, 960), (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768),
    (1344, 768), (1408, 704), (1472, 704), (1536, 640), (1600, 640), (1664, 576), (1728, 576),
    (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512),
)  # fmt: skip
BASE = 1024
NATIVE_SIZES = (512, 1024, 2048, 4096)
# Ratios that only the 2K and 4K models have when they draw.
LARGE_ONLY = (0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88)


def bins(native: int) -> dict[float, Size]:
    """Height over width, as published with two digits, to the size; empty for other models."""
    if native not in NATIVE_SIZES:
        return {}
    sizes = (*LANDSCAPES, (BASE, BASE), *PORTRAITS)
    table = {round(h / w, 2): (w * native // BASE, h * native // BASE) for h, w in sizes}
    if native > BASE:
        return table
    return {ratio: size for ratio, size in table.items() if ratio not in LARGE_ONLY}


def nearest_bin(width: int, height: int, *, native: int) -> Size:
    """The trained size whose ratio is nearest; RequestError for a model without bins."""
    table = bins(native)
    if not table:
        known = ", ".join(map(str, NATIVE_SIZES))
        raise RequestError(
            f"binned sizes are known for models of {known} pixels, this one draws {native}; "
            "leave binned out",
            field="binned",
        )
    return table[min(table, key=lambda ratio: abs(ratio - height / width))]
