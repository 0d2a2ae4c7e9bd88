"""`deit-fast bench report`: rows that were measured, as a page and as the README's tables. Nothing is measured here."""
