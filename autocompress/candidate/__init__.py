"""Describe how a model is compressed: candidates, configs of modules, and distillation."""

from autocompress.candidate.candidate import Candidate, config_error
from autocompress.candidate.distillation import (
    BATCH_NORMS,
    SCHEDULES,
    UNTRAINED,
    Distillation,
)
from autocompress.candidate.module_config import (
    ACTIVATION_MODES,
    ALGORITHMS,
    APART_BITS,
    DECOMPOSITIONS,
    IMPORTANCES,
    SPARSITY_CRITERIA,
    SPARSITY_PATTERNS,
    UNTOUCHED,
    WEIGHT_RANGES,
    ModuleConfig,
)

__all__ = [
    "ACTIVATION_MODES",
    "ALGORITHMS",
    "APART_BITS",
    "BATCH_NORMS",
    "DECOMPOSITIONS",
    "IMPORTANCES",
    "SCHEDULES",
    "SPARSITY_CRITERIA",
    "SPARSITY_PATTERNS",
    "UNTOUCHED",
    "UNTRAINED",
    "WEIGHT_RANGES",
    "Candidate",
    "Distillation",
    "ModuleConfig",
    "config_error",
]
