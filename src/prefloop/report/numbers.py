"""How reports write numbers."""

NOTHING = "–"


def fixed(value: float, places: int, *, sign: bool = False) -> str:
    """A number with so many decimals, a real minus, and on request a plus."""
    return f"{value:{'+' if sign else ''},.{places}f}".replace("-", "−")


def number(value: float | None) -> str:
    """About three significant digits; whole numbers as they are."""
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return fixed(value, 0)
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:.1e}".replace("-", "−")
    return fixed(value, 0 if size >= 100 else 1 if size >= 10 else 3 if 0 < size < 0.1 else 2)


def percent(value: float | None) -> str:
    """A share, with one decimal."""
    return NOTHING if value is None else f"{100 * value:.1f}%".replace("-", "−")


def duration(seconds: float) -> str:
    """A time span in the two largest units that matter."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def places_for(width: float | None) -> int:
    """Decimals that an interval of this width deserves."""
    if not width:
        return 2
    return next((places for places, limit in enumerate((20, 2, 0.05, 0.005)) if width >= limit), 4)
