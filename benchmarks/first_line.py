"""What of an error, which may be a page of a compiler's, goes into a table."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """One line of an error, which may be a page of a compiler's."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
