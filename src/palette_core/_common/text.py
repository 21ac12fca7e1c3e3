"""Text from outside, made fit for one line of a terminal."""

from __future__ import annotations

_LENGTH = 200


def printable(text: str) -> str:
    """Return ``text`` with what steers a terminal or hides characters escaped; line ends stay."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode()
        for sign in text
    )


def shortened(text: str, length: int = _LENGTH) -> str:
    """Return ``text`` printable and of at most ``length`` characters, cut in the middle."""
    if len(text) > length:
        half = (length - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return printable(text)
