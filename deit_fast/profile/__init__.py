"""`deit-fast profile`: where every millisecond of a training step goes, and what to do about it."""
