"""DALI pipelines: sampler, augmentation graphs for CPU and GPU, and the loader that hands batches to torch."""
