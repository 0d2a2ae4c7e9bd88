"""The configuration tree: frozen dataclasses, one section a concern; the text under a field is its help.

Functions take the section they need, never the whole tree. Derived values (global batch, scaled learning rate) are
functions, not fields. Recipes in `recipes/` set every value that a published result depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataConfig:
    """Where the images are, and how they are read."""

    path: str = ""
    """Folder or URL that holds `train` and `val`: class folders, packed shards or file lists (docs/data.md)."""
    manifest: str | None = None
    """Folder for kept listings and lists of bad images; default: .deit_fast in data.path, else the user's cache."""
    repeats: int = 3
    """Repeated augmentation: views of each image in one epoch; 1 turns it off (DeiT: 3)."""
    repeats_placement: Literal["official", "same_rank"] = "official"
    """same_rank: an image's views share a device and one decoding; cheaper, and not the recipe (see sampler.py)."""
    bad_sample: Literal["replace", "raise"] = "replace"
    """A file that cannot be read: replace shows another image in its place and goes on; raise stops the run."""
    max_bad_fraction: float = 0.01
    """With bad_sample replace: the run stops when a larger share of the images is bad."""
    backend: Literal["auto", "graph", "native"] = "auto"
    """graph: DALI's operators; native: this package's, Pillow's pixels in less time, CPU only; auto: that if built."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEGs are decoded; auto: where the rest of the pipeline runs."""
    hardware_decoder_share: float | None = None
    """Share of the JPEGs, 0 to 1, for a GPU's decoder; its cores take the rest. Default: as tuned here, else 0.9."""
    num_threads: int | None = None
    """CPU threads of the loader in this process; default: as tuned here, else the cores divided among processes."""
    prefetch: int | None = None
    """Batches that are prepared ahead; default: as tuned here, else 2."""


@dataclass(frozen=True)
class ModelConfig:
    """The student."""

    name: str = "deit_base_distilled_patch16_224"
    """A DeiT of this package (`deit_*`), or any model of timm by its name."""
    image_size_px: int = 224
    """Side of the square training and evaluation image, in pixels."""
    drop_path_rate: float = 0.1
    """Stochastic depth: the probability that a residual branch is dropped, at the last block."""
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    """linear: the rate grows from 0 at the first block (DeiT); constant: the same at every block (DeiT III)."""
    drop_path_mode: Literal["independent", "subset"] = "independent"
    """independent: each sample is drawn by itself (the recipe); subset: a fixed share of each mixing group is dropped
    and costs nothing, which is faster and not the recipe."""
    init_checkpoint: str | None = None
    """Weights to start from (fine-tuning): own, timm's or official file; a head of another shape is left out."""


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image before mixing (timm's `create_transform`)."""

    policy: Literal["rand", "three", "none"] = "rand"
    """rand: RandAugment; three: 3-Augment (DeiT III); none: only crop and flip."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation: magnitude m of 10, its noise mstd, operations n, probability p."""
    geometry: Literal["exact", "bilinear"] = "exact"
    """Rotation, shear and translation: exact is Pillow's bicubic, as timm uses; bilinear is cheaper, not the recipe."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter, after the policy; 0: none."""
    crop: Literal["resized", "simple"] = "resized"
    """resized: random resized crop; simple: shorter side resized, then a random crop (DeiT III's src)."""
    crop_scale_min: float = 0.08
    """Smallest area of the random resized crop, as a share of the image (the largest is 1)."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    erase_probability: float = 0.25
    """Probability of random erasing, after normalization."""
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """Normal noise for each pixel, one normal colour for each rectangle, or the mean colour."""
    erase_count: int = 1
    """Most rectangles in one image."""


@dataclass(frozen=True)
class MixConfig:
    """Mixup and CutMix, in timm's batch mode, per mixing group."""

    mixup_alpha: float = 0.8
    """Beta(a, a) of Mixup's lambda; 0 turns Mixup off."""
    cutmix_alpha: float = 1.0
    """Beta(a, a) of CutMix's lambda; 0 turns CutMix off."""
    probability: float = 1.0
    """Probability that a group is mixed at all."""
    switch_probability: float = 0.5
    """Probability of CutMix where both are on."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    group_size: int = 128
    """Images that share one draw of Mixup/CutMix; even, and divides the batch of a device."""
    cutmix_box: Literal["official", "timm"] = "official"
    """Box rounding: official is timm 0.3's (as DeiT was trained), timm is that of timm 1.x; see `mixing.cutmix_box`."""


@dataclass(frozen=True)
class LossConfig:
    """The loss on the labels."""

    label: Literal["ce", "bce"] = "ce"
    """ce: cross-entropy with the mixed, smoothed labels (DeiT); bce: binary cross-entropy, each mixed label 1 (III)."""
    cosub: bool = False
    """Co-training of two submodels: each image passes twice, with drop-paths of its own, and teaches itself."""


@dataclass(frozen=True)
class DistillConfig:
    """What the student learns from the teacher."""

    kind: Literal["none", "soft", "hard"] = "none"
    """hard: the teacher's top class is the distillation token's label; soft: Kullback-Leibler to its logits."""
    alpha: float = 0.5
    """Weight of the distillation loss; the label loss has 1 - alpha."""
    temperature: float = 1.0
    """Softens both distributions; soft distillation only."""
    soft_normalization: Literal["official", "batchmean"] = "official"
    """official divides the soft loss by batch x classes, batchmean by the batch alone."""
    teacher: str = "regnety_160"
    """Name of a timm model, or with teacher_checkpoint of a DeiT (deit_*)."""
    teacher_checkpoint: str | None = None
    """The teacher's weights (.safetensors, .pth); without it timm downloads the pretrained ones."""
    teacher_image_size_px: int | None = None
    """Side of the images that the teacher sees; default: as its weights were trained (timm's pretrained_cfg)."""
    label_cache: str | None = None
    """Folder written by `deit-fast teacher-cache`: the teacher's labels are read from it, and no teacher is loaded."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning rate and moving average of the weights."""

    name: Literal["adamw", "lamb"] = "adamw"
    """Optimizer: adamw (DeiT) or lamb (DeiT III)."""
    apex: Literal["auto", "never"] = "auto"
    """auto: NVIDIA's apex does the update where it is installed and the device is cuda; the numbers are the same."""
    lr: float = 5e-4
    """Peak learning rate, for a global batch of 512 when scale_lr is on."""
    scale_lr: bool = True
    """Multiply lr by global batch / 512."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not on vectors, biases, pos_embed and cls_token."""
    decay_dist_token: bool = True
    """Decay dist_token too, as the official code (timm 0.3) does; timm 1.x does not."""
    clip_grad_norm: float | None = None
    """Largest gradient norm; default: no clipping. LAMB clips at 1 itself, as apex's does."""
    ema_decay: float | None = 0.99996
    """Decay per step of the moving average of the weights; null: none is kept."""
    recipe_batch_size: int | None = None
    """Global batch that the published result was trained with; another one is warned about."""
    max_skipped_steps: int = 20
    """Steps with gradients that are not finite are skipped; with more of them in one epoch the run stops."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the epochs: linear warm-up, then cosine."""

    epochs: int = 300
    """Length of training in epochs."""
    warmup_epochs: int = 5
    """Epochs of linear warm-up."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up (not scaled by the batch)."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine (not scaled by the batch)."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on `val/`."""

    crop_ratio: float = 0.875
    """The shorter side is resized to image_size_px / crop_ratio, then the centre is cropped."""
    every_epochs: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch_size_per_device: int = 256
    """Images in one evaluation batch of one device."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How this machine runs it; none of this changes what is learnt, but for rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    batch_size_per_device: int = 128
    """Training images in one forward and backward of one device."""
    accumulate_steps: int = 1
    """Forwards and backwards whose gradients one step of the optimizer sums; the global batch grows with it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: as tuned here, else bf16 where the device computes in it, else fp16 on a GPU and fp32 on a CPU."""
    attention: Literal[
        "auto", "reference", "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math", "triton"
    ] = "auto"
    """sdpa: torch's fused attention, its backend chosen by torch or by the suffix; reference: plain matrix products;
    triton: the kernel for short rows (on a CPU a compiled one, in bf16 with AVX512-BF16); auto: what was tuned here,
    else sdpa, but reference on a CPU in bf16."""
    kernels: str = "auto"
    """Batch preparation, add + norm, GELU, loss: triton: the fused kernels; reference: plain torch, which torch.compile
    fuses; or the names of those that are to be fused, such as add_norm,gelu_bias (all: batch_prep, add_norm, gelu_bias,
    distill_loss); auto: what was tuned here, else reference. On a CPU add_norm and gelu_bias are compiled, too."""
    compile: bool | None = None
    """Compile the student block by block with torch.compile; null: as tuned here, else false."""
    cuda_graphs: bool | None = None
    """Replay the compiled blocks as CUDA graphs (needs compile and a cuda device); null: as tuned here, else false."""
    checkpoint_activations: bool = False
    """Keep only the input of each block of the student and compute the block again in the backward: the same gradients,
    a third more arithmetic, a fraction of the memory (`deit-fast plan` shows it)."""
    teacher_precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: as tuned here, else that of the student."""
    teacher_compile: bool | None = None
    """Compile the teacher with torch.compile; null: as tuned here, else false."""
    teacher_layout: Literal["auto", "channels_last", "contiguous"] = "auto"
    """Memory format of the teacher; which is faster differs by GPU and version. auto: as tuned here, else
    channels_last."""
    teacher_fold: bool | None = None
    """Fold the teacher's batch norms into its convolutions: exact but for rounding; null: as tuned here, else true."""
    tuned: str = "auto"
    """What `deit-fast tune` measured decides what is auto or null: auto: its file for this device and model, where
    there is a valid one; none: nothing; or a file, which has to be valid here."""
    pin_cores: bool = True
    """On cuda devices, bind each process to its share of the cores nearest to its device (NUMA)."""
    keep_memory: bool = True
    """On a CPU, keep what a step frees for the next one: 5 % less CPU time, and memory that never shrinks."""
    hang_timeout_s: float = 1800
    """Seconds without a step after which a process says which ranks are behind, and ends; 0: never."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, into the run's folder."""
    seed: int = 0
    """Every random choice of a run follows from it."""
    log_every_steps: int = 50
    """Steps between two lines of the log; only there does the host wait for the device."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    dir: str = "runs/train"
    """Folder of the run: config, metrics and checkpoints."""
    resume: str = "none"
    """none: a new run; auto: go on from the newest checkpoint in dir, or start; or the path of a checkpoint."""
    every_steps: int | None = None
    """Steps between checkpoints within an epoch; default: only at the end of each epoch."""
    keep_last: int = 3
    """Checkpoints that are kept; older ones are deleted."""
    keep_best: bool = True
    """Also keep the checkpoint with the best top-1 of all evaluations, as best.pt."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
