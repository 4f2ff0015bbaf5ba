"""The colours of attention maps, the same in figures, report, page and notebook.

Viridis: perceptually uniform, and it reads the same with any colour vision. Maps are scaled from 0
to the largest multiple of uniform attention, at least MIN_TOP: a nearly uniform map looks uniform.
"""

MIN_TOP = 2.0  # times uniform

# (r, g, b) at even distances; colours between two of them are interpolated.
VIRIDIS = (
    *((68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134)),
    *((59, 82, 139), (51, 99, 141), (44, 114, 142), (38, 130, 142)),
    *((33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115)),
    *((94, 201, 98), (132, 212, 75), (173, 220, 48), (216, 226, 25)),
    (253, 231, 37),
)


def colour(share: float) -> tuple[float, float, float]:
    """Return (r, g, b) of a ``share`` of the scale from 0 to 1."""
    at = min(1.0, max(0.0, share)) * (len(VIRIDIS) - 1)
    low = min(len(VIRIDIS) - 2, int(at))
    r, g, b = (
        x + (at - low) * (y - x) for x, y in zip(VIRIDIS[low], VIRIDIS[low + 1], strict=True)
    )
    return r, g, b


def css_gradient() -> str:
    """Return the scale from left to right as a CSS image."""
    return f"linear-gradient(to right, {', '.join(f'rgb{c}' for c in VIRIDIS)})"
