import hashlib
import struct

import numpy as np
import pytest
import torch

from audit.cases import PROFILES, Case, build, digest, normal, registered, uniform


def test_streams_stay_as_they_are() -> None:
    """The numbers that references are keyed by: a change here would make every committed one miss."""
    assert hashlib.sha256(uniform("a", 10).tobytes()).hexdigest()[:16] == "1a6cdfe5ef6e1d44"
    assert hashlib.sha256(normal("a", 2, 5).tobytes()).hexdigest()[:16] == "91aef634163548ba"


def test_normal_has_mean_0_and_variance_1_and_seeds_differ() -> None:
    draws = normal("moments", 100_000)
    # Five standard errors of the mean and of the variance.
    assert abs(draws.mean()) < 5 / 100_000**0.5
    assert abs(draws.var() - 1) < 5 * (2 / 100_000) ** 0.5
    assert not np.array_equal(normal("other", 10), normal("moments", 10))


def test_a_digest_tells_bytes_dtype_and_shape_apart() -> None:
    zeros = torch.zeros(2, 3)
    digests = {
        digest(zeros, zeros, "float32"),
        digest(-zeros, zeros, "float32"),
        digest(zeros, -zeros, "float32"),
        digest(zeros.view(3, 2), zeros.view(3, 2), "float32"),
        digest(zeros.bfloat16(), zeros.bfloat16(), "bfloat16"),
        digest(zeros.half(), zeros.half(), "float16"),
    }
    assert len(digests) == 6


def test_a_digest_is_the_documented_one() -> None:
    x, y = [1.0, -0.5], [0.25, 3.0]
    wanted = hashlib.sha256(b"float32 2\n" + struct.pack("<4f", *x, *y)).hexdigest()
    assert digest(torch.tensor(x), torch.tensor(y), "float32") == wanted


@pytest.mark.parametrize("case", registered(), ids=lambda c: c.name)
def test_every_case_builds_in_every_dtype(case: Case) -> None:
    for dtype in case.dtypes:
        problem = build(case, dtype)
        assert problem.input.shape == problem.target.shape
        assert problem.input.dtype == problem.target.dtype == getattr(torch, dtype)
        assert len(problem.row_digests) == len(problem.input)
        assert case.name == "not_numbers" or (not problem.input.isnan().any() and not problem.target.isnan().any())
        assert digest(*(t.clone() for t in (problem.input, problem.target)), dtype) == problem.case_digest
        again = build(case, dtype)
        assert again.case_digest == problem.case_digest


def test_a_smaller_profile_is_part_of_a_larger_one() -> None:
    quick, standard, full = ({c.name for c in registered(p)} for p in PROFILES)
    assert quick < standard <= full


def test_rounding_is_to_nearest() -> None:
    case = next(c for c in registered() if c.name == "random_scale1")
    exact = case.make()[0]
    rounded = build(case, "float32").numbers[0]
    assert (np.abs(rounded - exact) <= np.abs(exact) * 2.0**-24).all()
    assert (rounded == exact.astype(np.float32)).all()
