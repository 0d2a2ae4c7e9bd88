"""Optimizer groups, learning rate, schedule and moving average against timm and the official values."""

import copy

import pytest
import timm
import torch
from timm.optim import Lamb as TimmLamb
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEma, ModelEmaV3

from deit_fast.config import OptimConfig, ScheduleConfig
from deit_fast.ema import Ema
from deit_fast.lamb import Lamb
from deit_fast.model import create_student
from deit_fast.optim import build_optimizer, parameter_groups, scaled_lr
from deit_fast.schedule import learning_rate

NAME = "deit_tiny_distilled_patch16_224"


def student():
    torch.manual_seed(0)
    return create_student(NAME, num_classes=10, image_size_px=224, drop_path_rate=0.0, attention="auto")


def names_of(model, group):
    chosen = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


@pytest.mark.parametrize("decay_dist_token", [True, False])
def test_groups_are_timms_but_for_dist_token(decay_dist_token):
    model, theirs = student(), timm.create_model(NAME, num_classes=10)
    decayed, undecayed = parameter_groups(model, OptimConfig(decay_dist_token=decay_dist_token))
    skip = theirs.no_weight_decay() - ({"dist_token"} if decay_dist_token else set())
    their_undecayed, their_decayed = param_groups_weight_decay(theirs, 0.05, no_weight_decay_list=skip)
    assert names_of(model, decayed) == names_of(theirs, their_decayed)
    assert names_of(model, undecayed) == names_of(theirs, their_undecayed)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    assert ("dist_token" in names_of(model, decayed)) == decay_dist_token


def test_groups_of_a_timm_student_follow_its_own_list():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    _, undecayed = parameter_groups(model, OptimConfig())
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= names_of(model, undecayed)


def test_fused_adamw_steps_as_plain_adamw():
    model = torch.nn.Linear(7, 3)
    other = copy.deepcopy(model)
    ours = build_optimizer(model, OptimConfig(lr=1e-2), global_batch_size=512)
    theirs = torch.optim.AdamW(
        [{"params": [other.weight], "weight_decay": 0.05}, {"params": [other.bias], "weight_decay": 0.0}],
        lr=1e-2, eps=1e-8, fused=False, foreach=False,
    )  # fmt: skip
    for _ in range(5):
        for module, optimizer in ((model, ours), (other, theirs)):
            module(torch.ones(2, 7)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(model.weight, other.weight, atol=1e-7)
    assert torch.allclose(model.bias, other.bias, atol=1e-7)


def test_the_rate_scales_with_the_global_batch():
    assert scaled_lr(OptimConfig(lr=5e-4), 1024) == 1e-3
    assert scaled_lr(OptimConfig(lr=3e-3, scale_lr=False), 2048) == 3e-3


@pytest.mark.parametrize(("epochs", "warmup"), [(300, 5), (30, 5), (20, 0)])
def test_the_schedule_is_timms_one_epoch_late(epochs, warmup):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    theirs = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, warmup_prefix=False
    )
    schedule = ScheduleConfig(epochs=epochs, warmup_epochs=warmup)
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]  # what the official loop trains this epoch with
        assert learning_rate(epoch, schedule, 1e-3) == pytest.approx(expected, rel=1e-9), epoch
        theirs.step(epoch)


def test_the_average_is_timms():
    model = timm.create_model("resnet10t", num_classes=3)
    ours, theirs, third = Ema(model, 0.9), ModelEma(model, decay=0.9), ModelEmaV3(model, decay=0.9)
    model.train()
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        model(torch.randn(4, 3, 32, 32))  # moves the buffers of batch norm
        for average in (ours, theirs, third):
            average.update(model)
    for other in (theirs.ema, third.module):
        expected = other.state_dict()
        for name, value in ours.state_dict().items():
            if value.is_floating_point():
                assert torch.allclose(value, expected[name], atol=1e-6), name
    counters = {name: value for name, value in ours.state_dict().items() if "num_batches" in name}
    assert counters
    assert all(value == 3 for value in counters.values())


def test_the_average_does_not_share_memory_and_evaluates():
    model = student().train()
    average = Ema(model, 0.5)
    assert not average.module.training
    before = average.state_dict()["head.weight"].clone()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    assert torch.equal(average.state_dict()["head.weight"], before)
    average.update(model)
    assert torch.allclose(average.state_dict()["head.weight"], before + 0.5)
    with pytest.raises(ValueError, match="optim.ema_decay"):
        Ema(model, 1.0)


def test_lamb_steps_as_timms():
    """Five steps with gradients above and below the norm at which both clip."""
    torch.manual_seed(0)
    shapes = [(7, 5), (5,), (3, 4, 2), (4,)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]

    def groups(p):
        return [{"params": p[::2], "weight_decay": 0.05}, {"params": p[1::2], "weight_decay": 0.0}]

    mine, other = Lamb(groups(ours), lr=1e-2, eps=1e-8), TimmLamb(groups(theirs), lr=1e-2, eps=1e-8)
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a) * (3 if step < 3 else 0.01)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=2e-6, atol=1e-7), step


def test_lamb_leaves_everything_as_it_is_when_it_is_told_to():
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = Lamb([{"params": [parameter], "weight_decay": 0.1}], lr=1e-2)
    parameter.grad = torch.full((4, 3), float("inf"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()  # the very first step, when there is no state yet
    assert torch.equal(parameter, torch.ones(4, 3))
    parameter.grad = torch.ones(4, 3)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    before = [parameter.detach().clone(), *(value.clone() for value in optimizer.state[parameter].values())]
    parameter.grad = torch.full((4, 3), float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    after = [parameter.detach(), *optimizer.state[parameter].values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_lamb_takes_its_state_to_the_weights_device():
    """A checkpoint is read on the CPU; torch moves all of it but the number of steps."""
    trained = torch.nn.Parameter(torch.ones(4, 3))
    saved = Lamb([{"params": [trained]}], lr=1e-2)
    trained.grad = torch.ones(4, 3)
    saved.step()
    elsewhere = torch.nn.Parameter(torch.ones(4, 3, device="meta"))
    resumed = Lamb([{"params": [elsewhere]}], lr=1e-2)
    resumed.load_state_dict(saved.state_dict())
    devices = {name: value.device.type for name, value in resumed.state[elsewhere].items()}
    assert devices == dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), "meta")


def test_lamb_is_chosen_by_name():
    built = build_optimizer(torch.nn.Linear(2, 2), OptimConfig(name="lamb", scale_lr=False), global_batch_size=2048)
    assert isinstance(built, Lamb)
