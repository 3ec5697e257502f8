"""Calls of the interpreter's operations with random tensors, and the comparison of results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmsr_edge.converters.mil.table import call

if TYPE_CHECKING:
    pass


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(name: str, **inputs: Any) -> torch.Tensor:
    """The only result of an operation, called with tensors and strings as a program does."""
    (result,) = run_all(name, **inputs)
    return result


def run_all(name: str, **inputs: Any) -> tuple[torch.Tensor, ...]:
    def values(value: Any) -> list[Any]:
        if isinstance(value, tuple):
            return list(value)
        return [value if isinstance(value, (str, torch.Tensor)) else torch.tensor(value)]

    return call(name, {key: values(value) for key, value in inputs.items()})


def assert_close(result: torch.Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    expected = torch.as_tensor(expected)
    assert result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected.double(), rtol=tolerance, atol=tolerance)
