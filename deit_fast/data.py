"""From the configuration to the loaders: the only place that knows both."""

from __future__ import annotations

import torch

from deit_fast.dali_pipelines.decode import HARDWARE_DECODER_SHARE
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.loader import TrainLoader, ValidationLoader
from deit_fast.dali_pipelines.sampler import TrainSampler, ValidationSampler
from deit_fast.dali_pipelines.train_augment import TrainAugment
from deit_fast.dali_pipelines.unreadable import Substitutes
from deit_fast.kernels.choice import choose

from .config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, Config, DataConfig, EvalConfig
from .distributed import Ranks
from .open_images import open_images

DEFAULT_PREFETCH = 2
"""Batches; more hide longer stalls of a disk, and cost memory."""


def hardware_decoder_share(data: DataConfig) -> float:
    """What data.hardware_decoder_share comes to."""
    given = data.hardware_decoder_share
    return HARDWARE_DECODER_SHARE if given is None else given


def prefetch(data: DataConfig) -> int:
    """What data.prefetch comes to; ValueError below 1."""
    if data.prefetch is None:
        return DEFAULT_PREFETCH
    if data.prefetch < 1:
        raise ValueError(f"data.prefetch must be at least 1, got {data.prefetch}")
    return data.prefetch


def open_train_and_val(data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Both splits; ValueError when their classes differ, since labels are positions in the list of classes."""
    train, val = open_images(data, "train"), open_images(data, "val")
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise ValueError(
            f"train and val in data.path {data.path} do not hold the same classes: {odd[0]} is in one only"
        )
    return train, val


def global_batch_size(config: Config, ranks: Ranks) -> int:
    """Images in one optimizer step over all devices."""
    return config.runtime.batch_size_per_device * config.runtime.accumulate_steps * ranks.world_size


def train_augment(
    augment: AugmentConfig, image_size_px: int, *, decode_once: bool = False, normalize: bool = True
) -> TrainAugment:
    """The training view as the pipelines describe it."""
    return TrainAugment(
        image_size_px=image_size_px,
        crop=augment.crop,
        crop_scale_min=augment.crop_scale_min,
        flip_probability=augment.flip_probability,
        policy=augment.policy,
        rand_augment=augment.rand_augment,
        color_jitter=augment.color_jitter,
        geometry=augment.geometry,
        erase_probability=augment.erase_probability,
        erase_mode=augment.erase_mode,
        erase_count=augment.erase_count,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        normalize=normalize,
        decode_once=decode_once,
    )


def image_dtype(precision: str) -> torch.dtype:
    """That of the loader's images: float16 for bf16 too, which DALI lacks; it holds normalised pixels more finely."""
    return torch.float32 if precision == "fp32" else torch.float16


def kernel_normalizes(config: Config) -> bool:
    """Whether bytes come from the loader, and the batch preparation kernel normalises them: half of float16's traffic.

    Not with random erasing, which comes after normalisation.
    """
    return choose("batch_prep", config.runtime.kernels) == "triton" and config.augment.erase_probability == 0


def batch_dtype(config: Config, precision: str) -> torch.dtype:
    """That of the training loader's images: uint8 where a kernel normalises them."""
    return torch.uint8 if kernel_normalizes(config) else image_dtype(precision)


def train_loader(config: Config, images: ImageSet, ranks: Ranks, precision: str) -> TrainLoader:
    """This rank's share of every global batch."""
    sampler = TrainSampler(
        len(images),
        global_batch_size=global_batch_size(config, ranks),
        group_size=config.mix.group_size,
        repeats=config.data.repeats,
        seed=config.runtime.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        placement=config.data.repeats_placement,
    )
    decode_once = config.data.repeats_placement == "same_rank"
    return TrainLoader(
        images,
        sampler,
        train_augment(
            config.augment,
            config.model.image_size_px,
            decode_once=decode_once,
            normalize=not kernel_normalizes(config),
        ),
        device=ranks.device.type,
        device_id=ranks.device.index or 0,
        backend=config.data.backend,
        decoder=config.data.decoder,
        num_threads=config.data.num_threads or ranks.cores,
        prefetch=prefetch(config.data),
        hardware_decoder_share=hardware_decoder_share(config.data),
        dtype=image_dtype(precision),
        seed=config.runtime.seed,
        bad_sample=config.data.bad_sample,
        max_bad_fraction=config.data.max_bad_fraction,
        copies=bool(config.runtime.cuda_graphs),
    )


def validation_loader(
    data: DataConfig,
    evaluation: EvalConfig,
    images: ImageSet,
    image_size_px: int,
    ranks: Ranks,
    precision: str,
    *,
    copies: bool = False,
) -> ValidationLoader:
    """Every image once, over all ranks; copies: as the loader's, for runs with CUDA graphs."""
    sampler = ValidationSampler(
        len(images), batch_size=evaluation.batch_size_per_device, rank=ranks.rank, world_size=ranks.world_size
    )
    return ValidationLoader(
        images,
        sampler,
        image_size_px=image_size_px,
        crop_ratio=evaluation.crop_ratio,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        device=ranks.device.type,
        device_id=ranks.device.index or 0,
        backend=data.backend,
        decoder=data.decoder,
        num_threads=data.num_threads or ranks.cores,
        prefetch=prefetch(data),
        hardware_decoder_share=hardware_decoder_share(data),
        dtype=image_dtype(precision),
        bad_sample=data.bad_sample,
        copies=copies,
    )


def count_bad(substitutes: Substitutes, ranks: Ranks) -> int:
    """The images that any rank knows to be bad; BadImageError, on every rank, when they pass data.max_bad_fraction.

    Between two calls each rank holds only what it found itself against that share.
    """
    known = torch.zeros(substitutes.num_images, device=ranks.device)
    known[sorted(substitutes.bad)] = 1
    bad = int(ranks.sum(known).count_nonzero().item())
    substitutes.refuse_too_many(bad)
    return bad
