"""`deit-fast plan`: arithmetic by hand, counts against published ones, and what the command says."""

import json
from dataclasses import replace

import pytest
import timm
import torch

from deit_fast.activations import Activations
from deit_fast.budget import IMAGENET_TRAIN_IMAGES
from deit_fast.cli import main
from deit_fast.config import Config, DataConfig, DistillConfig, EvalConfig, ModelConfig, OptimConfig, RuntimeConfig
from deit_fast.config_rules import check_config
from deit_fast.dali_pipelines.decode import RESERVED_DEVICE_BYTES
from deit_fast.gpus import GPUS, find_gpu, gpu_of_driver
from deit_fast.planning.anchors import (
    STAND_INS,
    STUDENTS,
    TEACHERS,
    Utilisation,
    student_utilisation,
    teacher_utilisation,
)
from deit_fast.planning.command import loader_cost
from deit_fast.planning.costs import StudentCosts, TeacherCosts, count_student, count_teacher
from deit_fast.planning.memory_plan import plan_memory
from deit_fast.planning.plan import LoaderCost, make_plan
from deit_fast.planning.show import warnings
from deit_fast.planning.stages import Machine, all_reduce_rate, all_reduce_seconds, work_of
from deit_fast.planning.suggest import suggest_batch
from deit_fast.utilisation import forward_flops

MIB = 2**20
BASE = StudentCosts(
    "deit_base_distilled_patch16_224", 768, 87_338_192, 33 * 10**9, 1,
    Activations(59 * MIB, 60 * MIB, 175 * MIB), Activations(7 * MIB, 11 * MIB, 150 * MIB),
)  # fmt: skip
TEACHER = TeacherCosts("regnety_160", 224, 83_590_140, 2, 32 * 10**9, 11 * MIB)
H100 = Machine("h100", GPUS["h100"])
CONFIG = replace(Config(), distill=DistillConfig(kind="hard"), optim=OptimConfig(recipe_batch_size=1024))


def plan(config=CONFIG, machine=H100, student=BASE, teacher=TEACHER, mfu=(0.3, 0.5), **options):
    reached = Utilisation(*mfu, ("given",))
    loader = options.pop("loader", LoaderCost(1.4, "given"))
    return make_plan(config, machine, student, teacher, reached, teacher and reached, loader, **options)


def test_speed_days_and_cost_by_hand():
    found = plan(config=replace(CONFIG, eval=EvalConfig(every_epochs=300)), price_per_gpu_hour=2.5)
    flops = 3 * 33e9 + 32e9
    images_per_second = 8 * 0.5 * 989e12 / flops
    assert found.fast.images_per_second == pytest.approx(images_per_second)
    assert found.slow.images_per_second == pytest.approx(0.6 * images_per_second)
    evaluation = 2 * 50_000 * 33e9 / (8 * 0.5 * 989e12)  # once, the weights and their average
    days = (IMAGENET_TRAIN_IMAGES * 300 / images_per_second + evaluation) / 86_400
    assert found.fast.days == pytest.approx(days)
    assert found.fast.cost == pytest.approx(days * 24 * 8 * 2.5)
    assert found.fast.margin == pytest.approx(images_per_second / 1482.8, rel=1e-4)
    assert found.fast.student_share == pytest.approx(99 / 131)
    assert found.fast.limit == "compute"


def test_what_is_computed_again_and_twice_costs_flops():
    assert work_of(BASE, None, recompute=False).student == 3 * 33e9
    assert work_of(BASE, None, recompute=True).student == 4 * 33e9
    assert work_of(replace(BASE, passes=2), None, recompute=False).student == 6 * 33e9
    again = replace(CONFIG, runtime=RuntimeConfig(checkpoint_activations=True))
    ratio = plan(again, teacher=None).fast.images_per_second / plan(teacher=None).fast.images_per_second
    assert ratio == pytest.approx(3 / 4)


def test_the_slowest_stage_sets_the_speed():
    """64 cores at 1.4 ms are 45,714 images/s; 100 MB/s of files of 110 KB that are read once for three views 2,727."""
    on_cores = replace(CONFIG, data=replace(CONFIG.data, decoder="cpu"))
    quick = replace(H100, cores_per_node=16)
    assert plan(on_cores, quick).fast.stages["loader's cores"] == pytest.approx(16 / 1.4e-3)
    assert plan(on_cores, quick).fast.limit == "loader's cores"
    assert plan(on_cores, replace(quick, cores_per_node=64)).fast.limit == "compute"
    slow_disk = plan(CONFIG, replace(H100, disk_bytes_per_second_per_node=100e6))
    assert slow_disk.fast.limit == "disk"
    assert slow_disk.fast.images_per_second == pytest.approx(100e6 / (110e3 / 3))
    assert list(slow_disk.fast.stages.values()) == sorted(slow_disk.fast.stages.values())
    assert plan().fast.stages["JPEG engines"] == pytest.approx(8 * 7_000 * 7 / 5)


def test_the_all_reduce_hides_behind_the_backward_or_makes_the_step_longer():
    parameters = BASE.parameters
    assert all_reduce_seconds(H100, parameters) == pytest.approx(2 * 7 / 8 * 4 * parameters / 450e9)
    assert all_reduce_seconds(replace(H100, gpus=1), parameters) == 0
    two = replace(H100, gpus=16, network_bytes_per_second_per_node=12.5e9)
    assert two.nodes == 2
    assert all_reduce_seconds(two, parameters) == pytest.approx(2 * 15 / 16 * 4 * parameters / 12.5e9)
    # a step of 100 ms, 50 of them backward: 10 ms hide, and would up to five times the speed; 80 ms add 30
    assert all_reduce_rate(1000, 0.1, 0.05, 0.01) == pytest.approx(50_000)
    assert all_reduce_rate(1000, 0.1, 0.05, 0.08) == pytest.approx(1000 / 0.13)
    slow = plan(machine=replace(two, network_bytes_per_second_per_node=0.125e9))
    assert slow.fast.limit == "all-reduce"
    assert slow.fast.step_seconds > slow.fast.all_reduce_seconds


def test_memory_by_part_and_the_largest_batch():
    memory = plan_memory(CONFIG, BASE, TEACHER, 80 * 10**9, recompute=False)
    on_cpu = replace(CONFIG, data=DataConfig(decoder="cpu"))
    without = plan_memory(on_cpu, BASE, TEACHER, 80 * 10**9, recompute=False)
    reserved = memory.parts["loader and mixing"] - without.parts["loader and mixing"]
    assert reserved == RESERVED_DEVICE_BYTES == 4 * 211025920
    assert memory.parts["weights (fp32)"] == memory.parts["gradients (fp32)"] == 4 * BASE.parameters
    assert memory.parts["optimizer (two moments)"] == 8 * BASE.parameters
    assert memory.parts["activations"] == 128 * 60 * MIB
    assert memory.parts["teacher forward"] == 128 * 11 * MIB
    assert memory.total_bytes == sum(memory.parts.values())
    for size, fits in ((memory.largest_batch_size, True), (memory.largest_batch_size + 2, False)):
        runtime = replace(CONFIG.runtime, batch_size_per_device=size)
        assert plan_memory(replace(CONFIG, runtime=runtime), BASE, TEACHER, 80 * 10**9, recompute=False).fits is fits
    again = plan_memory(CONFIG, BASE, TEACHER, 80 * 10**9, recompute=True)
    assert again.parts["activations"] == 128 * 11 * MIB
    assert again.largest_batch_size > 2 * memory.largest_batch_size
    no_average = replace(CONFIG, optim=OptimConfig(ema_decay=None))
    assert "moving average" not in plan_memory(no_average, BASE, None, 80 * 10**9, recompute=False).parts


@pytest.mark.parametrize(
    ("gpus", "memory_gb", "batch", "accumulate", "recompute"),
    [
        (8, 80, 128, 1, False),
        (4, 80, 256, 1, False),
        (1, 80, 1024, 1, False),
        (8, 4.7, 16, 8, False),
        (8, 3.9, 32, 4, True),
    ],
)
def test_the_suggested_batch_fits_and_keeps_the_recipes(gpus, memory_gb, batch, accumulate, recompute):
    machine = replace(H100, gpus=gpus, gpu=replace(H100.gpu, memory_bytes=int(memory_gb * 1e9)))
    suggested = suggest_batch(CONFIG, machine, BASE, None)
    runtime = suggested.runtime
    found = (runtime.batch_size_per_device, runtime.accumulate_steps, runtime.checkpoint_activations)
    assert found == (batch, accumulate, recompute)
    assert batch * accumulate * gpus == 1024
    assert (batch * accumulate) % suggested.mix.group_size == 0
    check_config(suggested)
    assert plan_memory(suggested, BASE, None, machine.gpu.memory_bytes, recompute=recompute).fits


def test_what_train_refuses_is_not_suggested():
    """Groups of a share that is dropped may not span accumulated parts; graphs are not replayed over recomputation."""
    subset = replace(CONFIG, model=replace(CONFIG.model, drop_path_mode="subset"))
    graphs = replace(CONFIG, runtime=RuntimeConfig(compile=True, cuda_graphs=True))
    for config, memory_gb, batch in ((subset, 4.7, 16), (graphs, 3.9, 4)):
        machine = replace(H100, gpu=replace(H100.gpu, memory_bytes=int(memory_gb * 1e9)))
        suggested = suggest_batch(config, machine, BASE, None)
        assert suggested.runtime.batch_size_per_device == batch
        check_config(suggested)


def test_no_batch_keeps_the_recipes():
    with pytest.raises(ValueError, match=r"--gpus 3 cannot share the global batch of 1,024"):
        suggest_batch(CONFIG, replace(H100, gpus=3), BASE, None)
    small = replace(H100, gpu=replace(H100.gpu, memory_bytes=10**9))
    with pytest.raises(ValueError, match="does not fit"):
        suggest_batch(CONFIG, small, BASE, None)


def test_every_kind_has_anchors_and_they_say_what_was_published():
    for kind in GPUS:
        for embed_dim in (192, 768):
            found = student_utilisation(kind, embed_dim)
            assert 0 < found.low <= found.high < 1, kind
            assert found.basis
    assert {kind for kinds in STAND_INS.values() for kind in kinds} <= {anchor.gpu for anchor in STUDENTS}
    shares = {(anchor.gpu, anchor.model): anchor.mfu for anchor in (*STUDENTS, *TEACHERS)}
    assert shares["h100", "ViT-5-Base"] == pytest.approx(0.23, abs=0.005)  # "about 23 %" by its authors' figures
    assert shares["h100", "ViT-5-Small"] == pytest.approx(0.229, abs=0.005)  # stated so by its authors (compiled)
    assert student_utilisation("h100", 768).low == pytest.approx(0.23, abs=0.005)


def test_what_does_not_fit_is_said_with_its_mend():
    assert warnings(plan()) == []
    small = replace(H100, gpu=replace(H100.gpu, memory_bytes=8 * 10**9))
    (line,) = warnings(plan(machine=small))
    assert line.startswith("to keep the recipe's global batch within memory: --runtime.batch_size_per_device 32 ")
    assert "--runtime.accumulate_steps 4" in line
    convnet = plan(student=replace(BASE, name="resnet50", embed_dim=0))
    assert warnings(convnet) == []  # the range was given
    published = replace(convnet, student_utilisation=student_utilisation("h100", 0))
    assert "resnet50 is none: give yours by --mfu" in warnings(published)[0]
    in_fp32 = replace(CONFIG, runtime=RuntimeConfig(teacher_precision="fp32"))
    published = replace(
        plan(in_fp32), teacher_utilisation=teacher_utilisation("h100", student_utilisation("h100", 768))
    )
    assert warnings(published)[0].startswith("the teacher computes in fp32")


def test_gpus_by_their_names():
    assert find_gpu("RTX 4090") is find_gpu("rtx-4090") is GPUS["rtx4090"]
    for gpu in GPUS.values():
        assert gpu_of_driver(f"NVIDIA {gpu.driver_words}") is gpu
    assert gpu_of_driver("NVIDIA A100-SXM4-40GB") is GPUS["a100-40gb"]
    assert gpu_of_driver("NVIDIA A100-SXM4-80GB") is GPUS["a100"]
    assert [kind for kind, gpu in GPUS.items() if not gpu.is_supported] == ["v100"]
    with pytest.raises(ValueError, match="--gpu h1000 is not in the table: v100, a100"):
        find_gpu("h1000")


@pytest.mark.parametrize(
    ("name", "gmac"), [("regnety_160", 15.96), ("resnet50", 4.11), ("vit_base_patch16_224", 17.58)]
)
def test_flops_are_timms_published_ones(name, gmac):
    """timm's results/benchmark-infer-*.csv (resnet50: the paper of torchvision's variant); 2 FLOPs a multiply-add."""
    with torch.device("meta"):
        model = timm.create_model(name)
    assert forward_flops(model, 224) == pytest.approx(2e9 * gmac, rel=0.01)


def test_the_teacher_is_the_one_that_would_be_asked():
    runtime, small = RuntimeConfig(), DistillConfig(kind="hard", teacher="resnet10t")
    found = count_teacher(small, runtime, 32, 10, "bf16")
    assert (found.bytes_per_parameter, found.image_size_px) == (2, 176)  # timm's pretrained_cfg
    assert count_teacher(replace(small, teacher_image_size_px=64), runtime, 32, 10, "bf16").image_size_px == 64
    assert count_teacher(replace(small, label_cache="somewhere"), runtime, 32, 10, "bf16") is None
    assert count_teacher(DistillConfig(), runtime, 32, 10, "bf16") is None
    in_fp32 = count_teacher(small, RuntimeConfig(teacher_precision="fp32"), 32, 10, "bf16")
    assert in_fp32.bytes_per_parameter == 4
    assert in_fp32.peak_bytes_per_image > 1.5 * found.peak_bytes_per_image
    with pytest.raises(ValueError, match="unknown distill.teacher regnety_161"):
        count_teacher(DistillConfig(kind="hard", teacher="regnety_161"), runtime, 32, 10, "bf16")


def test_a_deit_that_only_this_package_has_teaches():
    """From its checkpoint, which a plan does not open."""
    runtime, size = RuntimeConfig(), 384
    distill = DistillConfig(kind="hard", teacher="deit_small_patch16_384", teacher_checkpoint="not here.pt")
    found = count_teacher(distill, runtime, 224, 1000, "bf16")
    student = ModelConfig(name=distill.teacher, image_size_px=size)
    assert found.image_size_px == size
    assert found.forward_flops == count_student(Config(model=student), 1000, "bf16").forward_flops
    with pytest.raises(ValueError, match="unknown distill.teacher deit_small_patch16_384: not a model of timm"):
        count_teacher(replace(distill, teacher_checkpoint=None), runtime, 224, 1000, "bf16")


def test_the_loaders_cost_comes_from_a_measured_row(tmp_path):
    rows = tmp_path / "rows.jsonl"
    ours = {"workload": "full recipe", "name": "deit_fast native", "cpu_ms_per_image": 1.25}
    peer = {"workload": "full recipe", "name": "timm", "cpu_ms_per_image": 5.0}
    old, new = {**ours, "cpu_ms_per_image": 9.0}, {"cpu": "a processor"}
    with rows.open("w") as file:
        for bench, found in (("loader", [old]), ("loader", [peer, ours]), ("step", [old])):
            file.write(json.dumps({"schema": 1, "bench": bench, "rows": found, "environment": new}) + "\n")
    cost = loader_cost(None, str(rows))
    assert cost.cpu_ms_per_image == 1.25
    assert "a processor" in cost.source
    assert loader_cost(2.0, str(rows)).cpu_ms_per_image == 2.0
    rows.write_text(json.dumps({"schema": 1, "bench": "step", "rows": []}) + "\n")
    with pytest.raises(ValueError, match="no loader row of the full recipe"):
        loader_cost(None, str(rows))
    for wrong in ("cpu_ms_per_image: 1.25\n", '{"schema": 1, "bench": "loader"}\n'):
        rows.write_text(wrong)
        with pytest.raises(ValueError, match=f"{rows} line 1 is no record"):
            loader_cost(None, str(rows))


MINI = (
    *("--model.name", "deit_mini_distilled_patch8_32", "--model.image_size_px", "32"),
    *("--distill.teacher", "resnet10t", "--distill.teacher_image_size_px", "32"),
)


def test_the_command_answers_in_its_first_lines(capsys, tmp_path):
    arguments = ["plan", *MINI, "--gpu", "v100", "--gpus", "4", "--price", "2", "--mfu", "0.2:0.4"]
    assert main([*arguments, "--json", str(tmp_path / "new" / "plan.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PREDICTED, not measured")
    head = printed[: printed.index("Speed, images/s")]
    for wanted in ("days", "cost", "at 2 for a GPU and hour", "limit", "memory", "NOT SUPPORTED", "4 x V100"):
        assert wanted in head
    assert "--runtime.batch_size_per_device 256" in head  # 4 GPUs share the recipe's 1,024
    written = json.loads((tmp_path / "new" / "plan.json").read_text())
    assert written["plan"] == "predicted, not measured"
    assert written["slow"]["limit"] in written["slow"]["stages"]
    assert written["fast"]["cost"] == pytest.approx(written["fast"]["days"] * 24 * 4 * 2)
    assert written["student"]["parameters"] == sum(parameter.numel() for parameter in build_mini().parameters())


def build_mini():
    from deit_fast.student import build_student

    model = ModelConfig(name="deit_mini_distilled_patch8_32", image_size_px=32)
    return build_student(replace(CONFIG, model=model), 1000)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "plan takes --gpu"),
        (["--gpu", "h1000"], "--gpu h1000 is not in the table"),
        (["--peak-tflops", "100"], "--peak-tflops and --memory-gb"),
        (["--gpu", "h100", "--peak-tflops", "-1"], "must be above 0"),
        (["--gpu", "h100", "--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["--gpu", "h100", "--loader-rows", "none.jsonl"], "none.jsonl is not there; `deit-fast bench loader"),
        (["--gpu", "h100", "--price", "-2"], "--price must be above 0, got -2.0"),
        (["--gpu", "h100", "--cores", "0"], "--cores must be above 0, got 0"),
        (["--gpu", "h100", "--disk-mb-per-second", "0"], "--disk-mb-per-second must be above 0, got 0.0"),
        (["--gpu", "h100", "--network-gbit-per-second", "-1"], "--network-gbit-per-second must be above 0, got -1.0"),
    ],
)
def test_wrong_use_is_one_line(capsys, arguments, line):
    assert main(["plan", *MINI, *arguments]) != 0
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
