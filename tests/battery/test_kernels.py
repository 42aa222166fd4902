"""`audit.check` on whole kernels: every broken one is found, no sound one is flagged with what it promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import audit
from audit.paths.execution import EXECUTIONS
from audit.paths.rounding import Rounding
from tests.battery import kernels
from tests.battery.defects import DEFECTS
from tests.battery.kernels import BROKEN, FUSED_KERNELS, Kernel
from tests.battery.sound import SOUND

EVERY = {k.__name__: k for kind in BROKEN.values() for k in kind}
# What shows in a minute's share of the suite: one of each kind.
SAMPLE = ["doubled_where_the_teacher_is_detached", "offset_left_out", "one_more_than_a_power_of_two"]


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_broken_kernel_is_found(name: str) -> None:
    assert not audit.check(EVERY[name], profile="quick", dtypes="float32", devices="cpu", rounding=audit.FUSED).sound


def test_a_sound_fused_kernel_is_sound_in_halves() -> None:
    options = {"profile": "quick", "dtypes": ["float16", "bfloat16"], "devices": "cpu", "rounding": audit.FUSED}
    audit.assert_sound([kernels.triton_like, kernels.chunked_online], **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_broken_kernel_is_found(name: str) -> None:
    """In all dtypes, with the promise that nearly all make."""
    assert not audit.check(EVERY[name], devices="cpu", rounding=audit.FUSED).sound


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "rounding"), [*FUSED_KERNELS, *((k, None) for k in SOUND)], ids=lambda v: getattr(v, "__name__", "")
)
def test_no_sound_kernel_is_flagged(kernel: Kernel, rounding: Rounding | None) -> None:
    audit.assert_sound(kernel, devices="cpu", rounding=rounding)


def test_the_battery_is_of_60_broken_and_15_sound_kernels_and_one_for_each_look_at_sizes() -> None:
    assert len({*EVERY, *(k.__name__ for k in DEFECTS)}) >= 60
    assert len({*(k.__name__ for k in SOUND), *(k.__name__ for k, _ in FUSED_KERNELS)}) >= 15
    sizes = [name for name, check in EXECUTIONS.items() if check.own and name.startswith("at ")]
    assert len(sizes) == 5 and len(BROKEN["shapes"]) >= len(sizes)
