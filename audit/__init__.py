"""Numerical-accuracy audit of the Kullback-Leibler divergence as PyTorch computes it.

The public names are imported on first use (PEP 562), so that `--help` and worker processes import no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.base.usage import UsageError as UsageError
    from audit.explain.diagnosis import diagnose as diagnose
    from audit.explain.tokens import diagnose_tokens as diagnose_tokens
    from audit.paths import path as path
    from audit.paths.foreign import from_numpy as from_numpy
    from audit.paths.remedy import kl_div_from_logits as kl_div_from_logits
    from audit.paths.rounding import FUSED as FUSED
    from audit.paths.rounding import Rounding as Rounding
    from audit.pipeline.loop import run as run
    from audit.pipeline.verdict import Verdict as Verdict
    from audit.pipeline.verdict import assert_sound as assert_sound
    from audit.pipeline.verdict import check as check
    from audit.publish.tables import read_errors as read_errors
    from audit.publish.tables import read_table as read_table
    from audit.reference.exact import exact_kl as exact_kl

__version__ = "0.1.0"

_HOMES = {
    "FUSED": "audit.paths.rounding",
    "Rounding": "audit.paths.rounding",
    "UsageError": "audit.base.usage",
    "Verdict": "audit.pipeline.verdict",
    "assert_sound": "audit.pipeline.verdict",
    "check": "audit.pipeline.verdict",
    "diagnose": "audit.explain.diagnosis",
    "diagnose_tokens": "audit.explain.tokens",
    "exact_kl": "audit.reference.exact",
    "from_numpy": "audit.paths.foreign",
    "kl_div_from_logits": "audit.paths.remedy",
    "path": "audit.paths",
    "read_errors": "audit.publish.tables",
    "read_table": "audit.publish.tables",
    "run": "audit.pipeline.loop",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
