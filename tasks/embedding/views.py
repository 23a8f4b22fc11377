"""The names of views: `hflip`, and disturbed `hflip+noise-2`, or `noise-2` alone of the plain image."""

import re

# Part of the fingerprint of every disturbed view: raise it when a disturbance gives other pixels.
VERSION = 1

DISTURBANCES = ("noise", "blur", "jpeg", "brightness", "contrast")
STRENGTHS = (1, 2, 3)

_NAME = re.compile(rf"(?:(.+)\+)?((?:{'|'.join(DISTURBANCES)})-[{STRENGTHS[0]}-{STRENGTHS[-1]}])")


def all_disturbances() -> tuple[str, ...]:
    """Each disturbance at each strength: `noise-1`, `noise-2`, …"""
    return tuple(f"{name}-{strength}" for name in DISTURBANCES for strength in STRENGTHS)


def divided(view: str) -> tuple[str, str | None]:
    """What a view shows of the image, and how that is disturbed: `hflip+noise-2` is hflip and noise-2,
    `noise-2` is identity and noise-2, `hflip` is hflip and None."""
    match = _NAME.fullmatch(view)
    return (match[1] or "identity", match[2]) if match else (view, None)


def disturbed_view(view: str, disturbance: str) -> str:
    """The name of an undisturbed view once it is disturbed."""
    return disturbance if view == "identity" else f"{view}+{disturbance}"
