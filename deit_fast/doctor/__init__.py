"""`deit-fast doctor`: what would go wrong in the next three days, found in a minute."""
