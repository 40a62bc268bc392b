"""Parts of sentences: numbers with their nouns, and lists."""

from collections.abc import Sequence


def counted(count: int, one: str, several: str = "") -> str:
    """Return a number with its noun: "1 task" or "2 tasks".

    Args:
        count: the number.
        one: the noun in the singular.
        several: the noun in the plural, unless that is the singular with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def joined(texts: Sequence[str]) -> str:
    """Return at least one text as a list in a sentence: "a, b and c"."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def duration(seconds: float) -> str:
    """Return a duration with its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
