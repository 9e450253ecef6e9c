"""H0 deaths from ripser, the reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def deaths(points: Tensor) -> Tensor:
    """``(N - 1,)`` float64, ascending, of finite ``(N, D)``. ripser computes in float32."""
    from ripser import ripser

    cloud = points.detach().cpu().double().numpy()
    found = ripser(cloud, maxdim=0)["dgms"][0][:, 1]
    finite = np.sort(found[np.isfinite(found)])
    # Points that coincide die at birth, and ripser leaves them out of its diagram.
    missing = np.zeros(len(cloud) - 1 - len(finite))
    return torch.from_numpy(np.concatenate([missing, finite])).to(points.device, torch.float64)
