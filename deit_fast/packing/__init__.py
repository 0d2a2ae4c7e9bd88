"""Shards: written from what people have, and checked; `dali_pipelines/shards.py` reads them."""
