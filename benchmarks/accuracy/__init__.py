"""`deit-fast bench accuracy`: what the recipe claims, shown on a data set that fits a CPU."""
