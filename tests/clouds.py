"""Small inputs of criteria, the same at each call."""

import torch


def normal(*shape, seed=0, dtype=torch.float32):
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def directions(*degrees):
    """Unit points of the plane: ``(1, n, 2)``."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None]


def one_hot_logits(*classes):
    """Logits that predict these classes: ``(1, n, k)``."""
    return torch.nn.functional.one_hot(torch.tensor(classes)).double()[None]


def log(*rows):
    """Logits with these probabilities: ``(1, n, k)``."""
    return torch.tensor(rows).log()[None]
