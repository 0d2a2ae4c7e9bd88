"""The step: never waits for the device, accumulates exactly, averages over passes, and folds its teacher exactly."""

import pytest
import timm
import torch
from small_runs import ALONE, config
from torch.utils._python_dispatch import TorchDispatchMode

from deit_fast.fold_batch_norm import fold_batch_norms
from deit_fast.trainer import Trainer


class WaitsForTheDevice(TorchDispatchMode):
    """Notes every operation that would make the host wait: reading a number, or a size that depends on values."""

    FORBIDDEN = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::item", "aten::is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in self.FORBIDDEN:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def steps_of(run, count=2):
    """A trainer that has done `count` steps, and what these waited for."""
    trainer = Trainer(run, ALONE)
    trainer.student.train()
    trainer.state.optimizer.param_groups[0]["lr"] = trainer.state.optimizer.param_groups[1]["lr"] = 1e-3
    waits = WaitsForTheDevice()
    with_items = zip(range(count), trainer.train_loader.batches(0, count), strict=True)
    for step, batch in with_items:
        with waits:
            trainer.train_step(batch, step, trainer.sampler.groups(step))
    return trainer, waits.seen


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_asks_the_device_for_nothing(few_digits, tmp_path, teacher_checkpoint, optimizer, precision):
    run = config(
        few_digits, tmp_path, "--runtime.precision", precision, "--optim.name", optimizer,
        "--optim.clip_grad_norm", "1", teacher=teacher_checkpoint,
    )  # fmt: skip
    _, waits = steps_of(run)
    assert waits == []


def test_the_watcher_sees_a_wait():
    waits = WaitsForTheDevice()
    with waits:
        torch.ones(2).sum().item()
    assert waits.seen == ["aten::_local_scalar_dense"]


@pytest.mark.gpu
def test_a_step_does_not_synchronise_with_the_gpu(few_digits, tmp_path, teacher_checkpoint):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, where torch.cuda.set_sync_debug_mode raises at a synchronisation")
    from deit_fast.distributed import Ranks

    trainer = Trainer(
        config(few_digits, tmp_path, teacher=teacher_checkpoint), Ranks(0, 1, 0, 1, torch.device("cuda", 0))
    )
    batches = trainer.train_loader.batches(0, 3)
    trainer.train_step(next(batches), 0, trainer.sampler.groups(0))  # allocates, chooses algorithms
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch, 1, trainer.sampler.groups(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_steps_train_what_one_large_batch_trains(few_digits, tmp_path, teacher_checkpoint, parts):
    """With mixing (groups larger than a part), drop-path and a teacher."""
    trained = []
    for size, count in ((32, 1), (32 // parts, parts)):
        run = config(
            few_digits, tmp_path / str(size), "--runtime.precision", "fp32", "--model.drop_path_rate", "0.3",
            "--runtime.batch_size_per_device", str(size), "--runtime.accumulate_steps", str(count),
            teacher=teacher_checkpoint,
        )  # fmt: skip
        trainer, _ = steps_of(run, count=1)
        trained.append(({name: p.grad for name, p in trainer.student.named_parameters()}, trainer))
    (whole, one), (summed, other) = trained
    assert one.state.global_batch_size == other.state.global_batch_size == 32
    for name, gradient in whole.items():
        assert (summed[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    losses = [trainer.train_step.guard.take()[0].loss for trainer in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("mode", ["independent", "subset"])
def test_cosub_passes_every_image_twice_with_other_drop_paths(few_digits, tmp_path, mode):
    run = config(
        few_digits, tmp_path, "--loss.cosub", "true", "--loss.label", "bce", "--mix.label_smoothing", "0",
        "--model.drop_path_rate", "0.5", "--model.drop_path_mode", mode, "--runtime.precision", "fp32",
        recipe="demo_student",
    )  # fmt: skip
    trainer = Trainer(run, ALONE)
    batch = next(trainer.train_loader.batches(0, 1))
    logits = trainer.train_step.forward(batch.images.float(), batch.views, 0)
    one, other = logits.chunk(2)
    assert len(logits) == 64
    assert (one != other).any(dim=1).float().mean() > 0.9
    assert torch.isfinite(trainer.train_step(batch, 0, trainer.sampler.groups(0)))


@pytest.mark.parametrize(("name", "norms"), [("resnet10t", 14), ("regnety_002", 58), ("mobilenetv3_small_050", 34)])
def test_folded_norms_change_nothing_but_rounding(name, norms):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        folded = fold_batch_norms(model, 64)
        after = model(images)
    left = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert folded > 0
    assert left == []
    assert folded == norms or name != "resnet10t"
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


class UsesTwice(torch.nn.Module):
    """The convolution's output goes round the norm as well: folding would change it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
        self.norm.running_mean += 1

    def forward(self, images):
        x = self.conv(images)
        return (self.norm(x) + x).mean(dim=(2, 3))


def test_a_norm_that_cannot_be_folded_stays(caplog):
    model = UsesTwice().eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(images)
        assert fold_batch_norms(model, 16) == 0
        assert torch.equal(model(images), before)
    assert isinstance(model.norm, torch.nn.BatchNorm2d)
    assert "they stay" in caplog.text
