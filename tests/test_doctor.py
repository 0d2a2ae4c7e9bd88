"""`deit-fast doctor`: every fault that can be made here is made, and found; the rest is judged from figures."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from layouts import pack_folder

from deit_fast.cli import main
from deit_fast.config import CheckpointConfig, Config, DataConfig, DistillConfig, ModelConfig, RuntimeConfig
from deit_fast.distributed import Ranks
from deit_fast.doctor import devices, host_limits, images, software, trial, versions
from deit_fast.doctor.devices import Gpu
from deit_fast.doctor.finding import Finding, worst
from deit_fast.kernels.cpu import library
from deit_fast.open_images import open_images
from deit_fast.run_state import first_state
from deit_fast.tuned import conditions, tuned_path

CPU = torch.device("cpu")
MINI = Config(model=ModelConfig(name="deit_mini_patch8_32", image_size_px=32), data=DataConfig(repeats=1))
WHEEL_12, WHEEL_13 = versions.DALI_WHEELS
GIB = 2**30


def one(findings):
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("torch_cuda", "wheels", "driver", "level", "told"),
    [
        ("13.0", [WHEEL_12], None, "note", "no NVIDIA driver"),
        (None, [WHEEL_12], 13000, "failure", "torch was built without CUDA"),
        ("13.0", [WHEEL_12], 12080, "failure", "torch brings CUDA 13, the driver runs up to 12.8"),
        ("12.8", [WHEEL_13], 12080, "failure", "nvidia-dali-cuda130 brings CUDA 13"),
        ("12.8", [WHEEL_12], 12040, "ok", "runs CUDA up to 12.4; torch brings 12.8"),  # minor version compatibility
        ("13.0", [WHEEL_12], 13010, "ok", "runs CUDA up to 13.1"),
    ],
)
def test_driver_torch_and_dali(torch_cuda, wheels, driver, level, told):
    finding = one(versions.judge_cuda(torch_cuda, wheels, driver))
    assert finding.level == level
    assert told in finding.text
    assert bool(finding.mend) == (level == "failure")


def test_both_wheels_of_dali_or_none():
    assert one(versions.judge_dali([WHEEL_12])).level == "ok"
    assert "no DALI" in one(versions.judge_dali([])).text
    both = one(versions.judge_dali([WHEEL_12, WHEEL_13]))
    assert (both.level, both.mend.split(",")[0]) == ("failure", f"pip uninstall -y {WHEEL_12} {WHEEL_13}")


def test_a_dali_that_cannot_be_imported_is_reported(tmp_path):
    """Whatever needs it is left out."""
    broken = "import sys; sys.modules['nvidia.dali'] = None"
    source = f"{broken}; from deit_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", source, "doctor", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    findings = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert {finding["check"] for finding in findings} == {"DALI", "driver", "packages"}
    assert "cannot be imported" in findings[0]["text"]
    assert findings[0]["mend"].startswith("pip install --force-reinstall nvidia-dali-cuda1")


@pytest.mark.parametrize(
    ("counts", "level", "told"),
    [
        ((0, 0, 0), "note", "there is none"),
        ((8, 0, 0), "failure", "the driver lists 8, torch sees none"),
        ((8, 8, 0), "failure", "torch sees 8, DALI 0"),
        ((8, 2, 2), "ok", "torch and DALI see 2"),
    ],
)
def test_gpus_are_seen_by_both(counts, level, told):
    finding = one(devices.judge_counts(*counts))
    assert (finding.level, told in finding.text) == (level, True)


@pytest.mark.parametrize(
    ("gpu", "levels"),
    [
        (Gpu("H100", (9, 0), 79 * GIB, 80 * GIB), ["ok"]),
        (Gpu("RTX 3090", (8, 6), 24 * GIB, 24 * GIB), ["ok"]),
        (Gpu("L40S", (8, 9), 45 * GIB, 45 * GIB), ["ok"]),  # sm_86's kernels run on it
        (Gpu("V100", (7, 0), 32 * GIB, 32 * GIB), ["failure"]),
        (Gpu("T4", (7, 5), 15 * GIB, 15 * GIB), ["warning"]),
        (Gpu("H100", (9, 0), 20 * GIB, 80 * GIB), ["warning"]),
    ],
)
def test_a_gpu_that_is_unsupported_or_taken(gpu, levels):
    built_for = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100"]
    assert [finding.level for finding in devices.judge_gpu(0, gpu, built_for)] == levels


@pytest.mark.slow
def test_a_sum_over_processes():
    """gloo stands in for NCCL; a process that hangs is found by the time."""
    assert devices.check_collective("cpu", 2).level == "ok"
    late = devices.check_collective("cpu", 2, timeout_s=0.5)
    assert (late.level, "did not end" in late.text) == ("failure", True)


def test_processes_that_do_not_end_are_ended(tmp_path, monkeypatch):
    """By their launcher, which has to be asked: here a shell stands in for torchrun."""
    launcher, worker = tmp_path / "launcher.sh", tmp_path / "worker"
    launcher.write_text(
        "#!/bin/sh\ntrap 'kill $worker; wait $worker; exit 1' TERM\nsleep 300 >/dev/null 2>&1 &\nworker=$!\n"
        f"echo $worker > {worker}\nwait $worker\n"
    )
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(launcher))
    assert "did not end" in devices.check_collective("cpu", 2, timeout_s=3).text
    with pytest.raises(ProcessLookupError):
        os.kill(int(worker.read_text()), 0)


def test_space_for_checkpoints(tmp_path):
    keep = CheckpointConfig(keep_last=3)
    full = host_limits.judge_space(tmp_path, int(4.9e9), int(1e9), keep)
    assert (full.level, "4.9 GB free, 5.0 GB are wanted" in full.text) == ("failure", True)
    assert host_limits.judge_space(tmp_path, int(5.1e9), int(1e9), keep).level == "ok"


def test_the_size_of_a_checkpoint_is_that_of_a_written_one(tmp_path):
    """Against torch.save of the real state, whose optimizer has stepped."""
    state = first_state(MINI, tuple(map(str, range(10))), Ranks(0, 1, 0, 1, CPU), "fp32")
    for weight in state.student.parameters():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    torch.save(state.as_dict(), tmp_path / "state.pt")
    fine_tuned = replace(MINI, model=replace(MINI.model, init_checkpoint="not here.pt"))
    for config in (MINI, fine_tuned):
        assert host_limits.state_bytes(config, 10) == pytest.approx((tmp_path / "state.pt").stat().st_size, rel=0.1)


def test_cores_and_disk_against_the_budget():
    assert host_limits.judge_cores(2, 8).level == "ok"  # 185.4 images/s x 1.0 ms x 8 = 1.5 cores
    assert host_limits.judge_cores(1, 8).level == "warning"
    levels = [images.judge_disk(speed, 110e3, 8).level for speed in (1400, 1600, 3000)]
    assert levels == ["failure", "warning", "ok"]
    assert "1,483 images/s for 8 devices" in images.judge_disk(1400, 110e3, 8).text
    assert "154 MB/s at 110 KB" in images.judge_disk(1400, 110e3, 8).text


def test_the_disk_is_read(few_digits, monkeypatch):
    """Every byte of every file once; nothing is counted that was not read."""
    digits = open_images(DataConfig(path=str(few_digits)), "train")
    sizes = sorted(path.stat().st_size for path in (few_digits / "train").rglob("*.jpg"))
    _, read = images.read_for(lambda image: images.read_image(digits, image), list(range(len(digits))), 60.0)
    assert sorted(read) == sizes
    _, read = images.read_for(lambda image: images.read_image(digits, image), list(range(len(digits))), 0.0)
    assert len(read) == 4 * images.READ_THREADS  # one round, then time is up
    monkeypatch.setattr(images, "READ_SECONDS", 0.1)
    assert "images/s read in random order" in images.check_disk(digits, torch.randperm(len(digits)).numpy(), 1).text


def test_a_store_that_lacks_a_shard(few_digits, tmp_path):
    """Bytes that cannot be read are a finding of the images, and no images a second of the disk."""
    packed = pack_folder(few_digits, tmp_path / "packed")
    set_of_images = open_images(DataConfig(path=f"file://{packed}"), "train")
    (packed / "train-00001.tar").unlink()
    found = images.check_sample(set_of_images, list(range(100)), max_bad_fraction=0.5)
    assert (found.level, "train-00001.tar" in found.text) == ("failure", True)
    _, sizes = images.read_for(lambda image: images.read_image(set_of_images, image), list(range(100)), 60.0)
    assert (len(sizes), min(sizes) > 0) == (80, True)
    for shard in packed.glob("train-*.tar"):
        shard.unlink()
    assert "not one image" in images.check_disk(set_of_images, torch.arange(100).numpy(), 1).text


def test_bad_files_in_a_sample(few_digits, tmp_path):
    shutil.copytree(few_digits, tmp_path / "digits")
    victim = sorted((tmp_path / "digits" / "train").rglob("*.jpg"))[5]
    victim.write_bytes(victim.read_bytes()[:200])
    digits = open_images(DataConfig(path=str(tmp_path / "digits")), "train")
    everything = list(range(20))
    found = images.check_sample(digits, everything, max_bad_fraction=0.01)
    assert (found.level, f"{victim}: a truncated JPEG" in found.text) == ("failure", True)
    assert images.check_sample(digits, everything, max_bad_fraction=0.1).level == "warning"
    assert images.check_sample(digits, everything[6:], max_bad_fraction=0.01).level == "ok"
    shutil.rmtree(victim.parent)
    missing = one(images.check_images(replace(MINI, data=DataConfig(path=str(tmp_path / "digits"))), 1))
    assert (missing.level, "do not hold the same classes" in missing.text) == ("failure", True)


def test_a_half_unpacked_imagenet():
    assert images.judge_sizes(1000, 1_281_167, 50_000).level == "ok"
    assert images.judge_sizes(1000, 1_281_166, 50_000).level == "warning"
    assert images.judge_sizes(10, 100, 40).level == "ok"


def test_apex_and_its_namesake(tmp_path, monkeypatch):
    assert software.check_apex().level == "note"
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = software.check_apex()
    assert (found.level, found.mend) == ("warning", "pip uninstall apex")


def test_native_operators_of_another_dali(monkeypatch):
    """On a CPU that is a slow run; on a GPU they are not used."""
    monkeypatch.setattr("deit_fast.dali_pipelines.native.plugin.load_plugin", unavailable)
    assert (software.check_native(CPU).level, software.check_native(torch.device("cuda")).level) == ("warning", "note")
    assert software.check_native(CPU).mend.startswith("python -m ")


@pytest.mark.skipif(not library.levels(), reason="the package was installed without a C++ compiler")
def test_the_kernels_of_a_cpu():
    found = software.check_kernels(CPU)
    assert found.level == "ok"
    assert "add_norm, gelu_bias" in found.text


def test_kernels_that_are_not_there(monkeypatch):
    monkeypatch.setattr(software, "has_kernel", lambda *_: False)
    found = software.check_kernels(CPU)
    assert found.level == "note"
    assert "plain torch" in found.text
    monkeypatch.setattr(software, "why_not_on", lambda _: "a GPU of compute capability 7.0 (at least 8.0)")
    assert "on a GPU of compute capability 7.0" in software.check_kernels(torch.device("cuda")).text


def unavailable():
    from deit_fast.dali_pipelines.native.plugin import NativeUnavailableError

    raise NativeUnavailableError("the native operators were built for another DALI")


def test_a_tuned_file_that_is_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert software.check_tuned(MINI, CPU).level == "note"
    path = tuned_path(MINI, CPU)
    path.parent.mkdir(parents=True)
    for torch_version, levels in (("1.0", ["warning", "failure"]), (conditions(MINI, CPU)["torch"], ["ok", "ok"])):
        valid_for = conditions(MINI, CPU) | {"torch": torch_version}
        path.write_text(yaml.safe_dump({"valid_for": valid_for, "chosen": {"data.prefetch": 4}}))
        named = replace(MINI, runtime=RuntimeConfig(tuned=str(path)))
        assert [software.check_tuned(config, CPU).level for config in (MINI, named)] == levels


def test_a_teacher_that_is_not_there(tmp_path):
    assert software.check_teacher(MINI) == []
    distill = DistillConfig(kind="hard", teacher_checkpoint=str(tmp_path / "teacher.pth"))
    assert one(software.check_teacher(replace(MINI, distill=distill))).level == "failure"
    (tmp_path / "teacher.pth").touch()
    assert one(software.check_teacher(replace(MINI, distill=distill))).level == "ok"
    assert one(software.check_teacher(replace(MINI, distill=DistillConfig(kind="hard")))).level == "note"


def test_first_weights_that_are_not_there(tmp_path):
    assert software.check_first_weights(MINI) == []
    config = replace(MINI, model=replace(MINI.model, init_checkpoint=str(tmp_path / "first.pth")))
    assert one(software.check_first_weights(config)).level == "failure"
    (tmp_path / "first.pth").touch()
    assert one(software.check_first_weights(config)).level == "ok"


def test_the_trial_says_what_it_leaves_out():
    """What it is tried without takes memory too."""
    assert trial.left_out(MINI) == ""
    taught = replace(MINI, distill=DistillConfig(kind="hard"), runtime=RuntimeConfig(accumulate_steps=2))
    assert trial.left_out(taught) == "; without teacher and accumulated parts, with which the run takes more memory"


def test_a_step_that_fails(monkeypatch):
    """The step is the run's: what breaks in it is the finding. Images are made where there are none."""
    assert one(trial.check_devices_train(MINI, [CPU])).level == "ok"

    def not_finite(*_args):
        return float("nan"), 1.0

    monkeypatch.setattr(trial, "try_step", not_finite)
    assert one(trial.check_devices_train(MINI, [CPU])).level == "failure"

    def no_room(*_args):
        raise torch.OutOfMemoryError("2 GiB\nand a page of advice")

    monkeypatch.setattr(trial, "try_step", no_room)
    found = one(trial.check_devices_train(MINI, [CPU]))
    assert (found.text, "accumulate_steps" in found.mend) == ("on cpu it failed: 2 GiB", True)


def test_the_command(few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "READ_SECONDS", 0.1)
    monkeypatch.setattr(versions, "check_requirements", lambda: Finding("packages", "ok", "not asked here"))
    run = ["doctor", "--config", "demo_student", "--runtime.device", "cpu", "--data.path", str(few_digits)]
    code = main([*run, "--checkpoint.dir", str(tmp_path / "run"), "--json", str(tmp_path / "found.json")])
    result = json.loads((tmp_path / "found.json").read_text())
    checks = {finding["check"]: finding["level"] for finding in result["findings"]}
    expected = {
        "DALI",
        "driver",
        "packages",
        "GPU",
        "limits",
        "cores",
        "checkpoints",
        "apex",
        "native operators",
        "kernels",
        "tuned",
    }
    assert set(checks) == expected | {"data", "images", "disk", "training step"}
    assert code == (1 if "failure" in checks.values() else 0)
    assert checks["training step"] == "ok"
    assert all(finding["mend"] for finding in result["findings"] if finding["level"] in ("warning", "failure"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*run[:-1], str(tmp_path / "nowhere"), "--runtime.device", "cuda"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "failure device: runtime.device is cuda, but torch finds no CUDA device here" in printed
    assert "does not exist or is not a folder" in printed


def test_the_worst_finding_decides():
    assert worst([]) == "ok"
    levels = ["note", "warning", "ok"]
    assert worst([Finding("x", level, "") for level in levels]) == "warning"
    assert worst([Finding("x", level, "") for level in [*levels, "failure"]]) == "failure"
