"""`deit-fast plan`: what a run will take on GPUs that are not here. Predictions; docs/plan.md has the formulas."""
