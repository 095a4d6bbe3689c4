from pathlib import Path

import pytest

from launch import matmul_rate
from launch.matmul_rate import gpu_names, known_tflops


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the driver of a machine with two GPUs."""
    for number, name in enumerate(("NVIDIA H100 80GB HBM3", "NVIDIA L4")):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t {number}\nGPU UUID: \t GPU-{number}\n")
    monkeypatch.setattr(matmul_rate, "_DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    matmul_rate.matmul_rate.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]),
        ("1", ["NVIDIA L4"]),
        ("1,0", ["NVIDIA L4", "NVIDIA H100 80GB HBM3"]),
        ("GPU-0", ["NVIDIA H100 80GB HBM3"]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_are_those_that_cuda_may_use(
    driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_names() == expected


def test_the_rate_of_gpus_is_that_of_their_data_sheets(driver: Path) -> None:
    rate = matmul_rate.matmul_rate()
    assert (rate.device, rate.count, rate.flops) == ("cuda", 2, pytest.approx(0.8 * (989 + 121) * 1e12))
    assert rate.origin == "estimated from data sheets, for 1 x NVIDIA H100 80GB HBM3, 1 x NVIDIA L4"


def test_a_gpu_that_is_not_known_is_said_to_be_assumed(driver: Path) -> None:
    for path in driver.glob("*/information"):
        path.write_text("Model: Strange 9000\n")
    rate = matmul_rate.matmul_rate()
    assert rate.flops == 2 * 100e12
    assert rate.origin == "assumed, as the data sheet of some is not known, for 2 x Strange 9000"


def test_without_gpus_the_cores_are_measured(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rate = matmul_rate.matmul_rate()
    assert rate.device == "cpu"
    assert 1e8 < rate.flops < 1e14
    assert rate.origin == f"measured on {rate.count} cores"


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("Tesla T4", 65),
        ("NVIDIA RTX A4000", None),
    ],
)
def test_names_are_compared_by_words(name: str, tflops: int | None) -> None:
    assert known_tflops(name) == tflops
