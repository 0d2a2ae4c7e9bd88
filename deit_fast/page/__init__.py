"""Self-contained HTML pages: verdict, cards, figures, sortable tables, in one file that needs no network."""

from .page import Page

__all__ = ["Page"]
