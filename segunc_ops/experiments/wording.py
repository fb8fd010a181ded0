"""Numbers with their nouns and verbs, for messages."""

from __future__ import annotations


def number_of(number: int, noun: str, plural: str | None = None) -> str:
    """Such as "1 image" and "1,200 images"; `plural` is that of a noun that takes no "s" alone."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def number_of_classes(number: int) -> str:
    """Such as "1 class"."""
    return number_of(number, "class", "classes")


def have(number: int) -> str:
    """What so many things do."""
    return "has" if number == 1 else "have"


def are(number: int) -> str:
    """What so many things do, too."""
    return "is" if number == 1 else "are"
