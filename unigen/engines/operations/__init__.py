"""What torch's operations mean in JAX: one entry an operation, by family. Importing this imports jax."""

from unigen.engines.operations import (  # noqa: F401  (each enters its operations)
    convolutions,
    creation,
    elementwise,
    indexing,
    linear_algebra,
    normalization,
    random,
    reductions,
    resampling,
    shapes,
)
from unigen.engines.operations.table import TABLE, Operation, find, functional_name, operation

__all__ = ["TABLE", "Operation", "find", "functional_name", "operation"]
