import pytest
import torch

from audit.base.usage import UsageError
from audit.machine import devices
from audit.machine.devices import Device, found, select

CPU, ABSENT = Device("cpu", "a processor"), Device("cuda", absent="this torch is built without CUDA")
GPU, SECOND = Device("cuda", "a GPU"), Device("cuda:1", "a GPU")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with the devices and the NVIDIA evidence one names."""

    def make(*present: Device, evidence: str = "") -> None:
        monkeypatch.setattr(devices, "found", lambda: list(present))
        monkeypatch.setattr(devices, "visible_nvidia", lambda: evidence)
        monkeypatch.setattr(devices, "_fault", lambda device: "")

    return make


def test_the_cpu_is_always_found_and_cuda_is_named_where_absent() -> None:
    names = [d.name for d in found()]
    assert names[0] == "cpu"
    assert "cuda" in names
    assert all(bool(d.model) != bool(d.absent) for d in found())
    if not torch.cuda.is_available():
        assert next(d for d in found() if d.name == "cuda").absent


def test_of_several_equal_gpus_one_is_audited_unless_more_are_named(machine) -> None:
    machine(CPU, GPU, SECOND)
    assert select(None) == [CPU, GPU]
    assert select(["cuda:1", "cuda"]) == [GPU, SECOND]
    assert select("cuda*") == [GPU, SECOND]


def test_a_card_is_named_by_its_number_or_as_it_calls_itself_and_each_model_is_audited(machine) -> None:
    slices = [Device("cuda", "NVIDIA A100 MIG 1g.5gb"), Device("cuda:1", "NVIDIA H100")]
    machine(CPU, *slices)
    assert select(None) == [CPU, *slices]
    assert select("cuda:0") == select("*MIG 1g.5gb") == slices[:1]
    assert select("NVIDIA H100") == slices[1:]
    machine(CPU, *slices, Device("cuda:2", slices[0].model))
    assert select(None) == [CPU, *slices]


def test_an_absent_device_is_refused_with_its_reason(machine) -> None:
    machine(CPU, ABSENT)
    with pytest.raises(UsageError, match="'cuda' is absent: this torch is built without CUDA; there are cpu"):
        select(["cuda"])
    with pytest.raises(UsageError, match=r"unknown device 'tpu'.*there are cpu"):
        select(["tpu"])


def test_a_visible_nvidia_device_that_torch_cannot_use_fails_the_run(machine) -> None:
    machine(CPU, ABSENT, evidence="/dev/nvidia0")
    with pytest.raises(UsageError, match=r"an NVIDIA device is visible \(/dev/nvidia0\)"):
        select(None)
    for glob in ("*", "c*", "cpu*", ["[c]pu"]):
        with pytest.raises(UsageError, match="an NVIDIA device is visible"):
            select(glob)
    assert select(["cpu"]) == select("cpu:0") == select(torch.device("cpu")) == [CPU]
    machine(CPU, GPU, evidence="/dev/nvidia0")
    assert select(None) == [CPU, GPU]
