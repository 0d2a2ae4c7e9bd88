"""The GPU's graphs, built without a GPU: placements, operators that exist there, nothing deprecated."""

import numpy as np
import pytest
import torch
from nvidia.dali import backend, fn, pipeline_def

from deit_fast.benchmarks.loader_stages import stage_pipeline
from deit_fast.dali_pipelines.decode import RESERVED_DEVICE_BYTES, RESERVED_HOST_BYTES, memory_hints
from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.dali_pipelines.loader import TrainLoader, ValidationLoader
from deit_fast.dali_pipelines.read_ahead import ReadAhead
from deit_fast.dali_pipelines.sampler import TrainSampler, ValidationSampler
from deit_fast.dali_pipelines.train_augment import IMAGENET_MEAN, IMAGENET_STD, TrainAugment
from deit_fast.dali_pipelines.train_graph import build_train_pipeline
from deit_fast.dali_pipelines.validation_graph import build_validation_pipeline

REGISTERED = {
    "cpu": set(backend.RegisteredCPUOps()),
    "gpu": set(backend.RegisteredGPUOps()),
    "mixed": set(backend.RegisteredMixedOps()),
}
OPTIONS = {"batch_size": 8, "num_threads": 2, "device_id": 0, "prefetch_queue_depth": 2}


def operators(pipeline):
    """(schema name, device) of each operator. Construction itself refuses a GPU tensor as a named argument or `if`."""
    pipeline._build_graph()
    return [(instance._op.schema.Name(), instance._op.device) for instance in pipeline._ops]


def complaints(found):
    wrong = [f"{name} has no {device} backend" for name, device in found if name not in REGISTERED[device]]
    return wrong + [f"{name} is deprecated" for name, _ in found if backend.GetSchema(name).IsDeprecated()]


def empty(_info):
    return []


def train(device, decoder="auto", **augment):
    return build_train_pipeline(TrainAugment(**augment), empty, device=device, decoder=decoder, **OPTIONS)


@pytest.mark.parametrize("decoder", ["auto", "cpu", "gpu"])
@pytest.mark.parametrize("geometry", ["exact", "bilinear"])
def test_the_train_graph_for_a_gpu(decoder, geometry):
    found = operators(train("gpu", decoder, geometry=geometry))
    assert not complaints(found)
    decoders = [device for name, device in found if "decoders__Image" in name or "DecoderSlice" in name]
    assert decoders == ["cpu" if decoder == "cpu" else "mixed"]
    on_gpu = {name for name, device in found if device == "gpu"}
    warp = "WarpAffine" if geometry == "exact" else "WarpPerspective"
    assert {"Resize", "Flip", warp, "CropMirrorNormalize", "Erase"} <= {name.split("__")[-1] for name in on_gpu}


VARIANTS = {
    "deit": {},
    "bilinear": {"geometry": "bilinear"},
    "deit III": {"policy": "three", "color_jitter": 0.3, "erase_probability": 0.0},
    "simple crop": {"crop": "simple", "policy": "three", "color_jitter": 0.3, "erase_probability": 0.0},
    "decode once": {"decode_once": True},
    "three operations": {"rand_augment": "rand-m7-n3-p0.8-inc1"},
    "no policy, one colour": {"policy": "none", "erase_mode": "rand", "erase_count": 3},
    "bytes": {"normalize": False, "erase_mode": "const"},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_graphs_of_both_devices_hold_the_same_operators(variant):
    """One definition: what differs is copies between the devices, and the GPU's all exist there."""
    copies = {"Copy", "MakeContiguous", "_conditional__Hint"}
    built = {device: operators(train(device, **variant)) for device in ("cpu", "gpu")}
    assert not complaints(built["gpu"]) + complaints(built["cpu"])
    one, other = (sorted(name for name, _ in found if name not in copies) for found in built.values())
    if variant.get("decode_once") or variant.get("crop") == "simple":
        # the CPU decodes a whole image as a region of it (`train_graph.decode`), which takes its size once more
        one, other = ({name.replace("ImageSlice", "Image") for name in names} for names in (one, other))
    assert one == other
    pixels = {"Resize", "Flip", "CropMirrorNormalize", "WarpAffine", "Filter", "Erase", "Normalize"}
    assert all(device == "gpu" for name, device in built["gpu"] if name in pixels)


@pytest.mark.parametrize("variant", ["deit", "simple crop", "decode once"])
def test_the_gpus_decoder_sees_what_the_cpus_sees_and_reserves_its_memory(variant):
    pipeline = train("gpu", **VARIANTS[variant])
    pipeline._build_graph()
    (decoder,) = (instance._op._init_args for instance in pipeline._ops if instance._op.device == "mixed")
    assert decoder["jpeg_fancy_upsampling"] is True
    assert decoder["adjust_orientation"] is False
    for hint in ("hw_decoder_load", "preallocate_width_hint", "device_memory_padding", "host_memory_padding"):
        assert decoder[hint] > 0


def test_the_decoders_memory_does_not_grow_with_the_threads():
    """DALI reserves `device_memory_padding` for each of a pipeline's threads, `host_memory_padding` twice."""
    for threads in (2, 4, 32, 224):
        hints = memory_hints(threads)
        assert hints["device_memory_padding"] * threads <= RESERVED_DEVICE_BYTES
        assert hints["host_memory_padding"] * threads <= RESERVED_HOST_BYTES
    assert memory_hints(4)["device_memory_padding"] == 211025920


def test_the_decode_stage_decodes_as_the_loader(few_digits):
    images = scan_image_folder(few_digits / "train")
    sampler = TrainSampler(len(images), global_batch_size=8, group_size=8, repeats=1, seed=0)
    loader = TrainLoader(images, sampler, TrainAugment(), device="cuda", hardware_decoder_share=0.25)
    reader = ReadAhead(images, lambda _step: np.arange(8), 1)
    pipeline = stage_pipeline(loader, reader, decodes=True)
    pipeline._build_graph()
    (decoder,) = (instance._op._init_args for instance in pipeline._ops if instance._op.device == "mixed")
    assert decoder["hw_decoder_load"] == 0.25


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_validation_graph(device):
    pipeline = build_validation_pipeline(
        empty, image_size_px=224, crop_ratio=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD, device=device, **OPTIONS
    )
    found = operators(pipeline)
    assert not complaints(found)
    assert ("Resize", device) in found


def test_the_check_sees_an_operator_that_a_gpu_lacks():
    @pipeline_def(batch_size=1, num_threads=1, device_id=0)
    def pipeline():
        return fn.peek_image_shape(fn.external_source(lambda: np.zeros(1, np.uint8)).gpu(), device="gpu")

    with pytest.raises(Exception, match=r"(?i)gpu|device"):
        assert not complaints(operators(pipeline()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("decoder", ["cpu", "gpu"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_gpu_batches_are_the_cpus(photographs, decoder, variant):
    images = scan_image_folder(photographs / "train")
    placement = "same_rank" if variant.get("decode_once") else "official"
    sampler = TrainSampler(len(images), global_batch_size=16, group_size=16, repeats=3, seed=0, placement=placement)
    augment = TrainAugment(**variant)
    cpu = TrainLoader(images, sampler, augment, device="cpu").batches(0, 2)
    gpu = TrainLoader(images, sampler, augment, device="cuda", decoder=decoder).batches(0, 2)
    for ours, theirs in zip(gpu, cpu, strict=True):
        difference = (ours.images.cpu().float() - theirs.images.float()).abs().mean()
        assert difference < (0.02 if augment.normalize else 1.0)  # a grey level is 0.017 when normalised
        assert torch.equal(ours.labels.cpu(), theirs.labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("decoder", ["cpu", "gpu"])
def test_gpu_validation_is_the_cpus(photographs, decoder):
    images = scan_image_folder(photographs / "val")
    options = {"image_size_px": 224, "crop_ratio": 0.875, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    cpu, gpu = (
        ValidationLoader(images, ValidationSampler(len(images), batch_size=5), device=device, decoder=chosen, **options)
        for device, chosen in (("cpu", "cpu"), ("cuda", decoder))
    )
    for ours, theirs in zip(gpu, cpu, strict=True):
        assert (ours.images.cpu() - theirs.images).abs().mean() < 0.02
