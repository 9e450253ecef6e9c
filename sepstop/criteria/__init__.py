"""Label-free scores of a model: for each, a pure function and a thin class.

A criterion is called with the inputs that its attribute ``needs`` names, in that order; `INPUTS`
describes them. A criterion whose reading of the logits suits only some models names their outputs
in its attribute ``outputs``: "classes" (one class out of k) or "labels" (a yes or no for each).

`CRITERIA` are the recommended ones. `sepstop.bench.criteria` has others for comparison.
"""

from sepstop.criteria.component_mi import ComponentMI
from sepstop.criteria.label_mi import LabelMI
from sepstop.criteria.neighbor_mi import NeighborMI
from sepstop.criteria.pool_loss import PoolLoss
from sepstop.criteria.predictions import InfoMax, NegativeEntropy, SelfConsistency
from sepstop.criteria.robust_mi import Consistency, RobustMI
from sepstop.criteria.separability import Separability, h0_separability

INPUTS = {
    "points": "the embeddings: (B, n, D) float",
    "logits": "the model's logits: (B, n, k) float",
    "previous_logits": "the logits of the previous evaluation: (B, n, k) float",
    "corrupted_logits": "the logits of the same texts without 30 % of their tokens: "
    "(B, n, k) float",
    "token_losses": "of a language model, the sum of the cross-entropies of each text's tokens in "
    "nats, and their number: (B, n, 2) float",
    "neighbors": "the 3 nearest neighbors of each text at each of the S evaluations so far, as "
    "indices into the cloud: (B, n, S, 3) int64",
    "neighbor_classes": "the classes that the model predicts now for these neighbors: "
    "(B, n, S, 3) int64",
}
"""The inputs that a criterion can need. B is the number of clouds, n the texts in each."""

CRITERIA: dict[str, type] = {
    "robust_mi": RobustMI,
    "neighbor_mi": NeighborMI,
    "consistency": Consistency,
    "label_mi": LabelMI,
    "component_mi": ComponentMI,
    "separability": Separability,
    "infomax": InfoMax,
    "entropy": NegativeEntropy,
    "self_consistency": SelfConsistency,
    "pool_loss": PoolLoss,
}
"""The recommended criteria by their names in YAML, on the command line and in tables."""

_COMPARED = {
    "alpha_req": "AlphaReQ",
    "bnm": "BNM",
    "calinski_harabasz": "CalinskiHarabasz",
    "churn": "Churn",
    "cluster_entropy": "ClusterEntropy",
    "cluster_information": "ClusterInformation",
    "coherence": "Coherence",
    "nesum": "NESum",
    "rankme": "RankMe",
    "self_clustering": "SelfClustering",
    "silhouette": "Silhouette",
    "snd": "SND",
    "stable_rank": "StableRank",
    "total_persistence": "TotalPersistence",
}

HINTS = {
    name: f"{name!r} is for comparison only, as 'sepstop.bench.criteria:{attribute}'"
    for name, attribute in _COMPARED.items()
}
"""Names that are not in `CRITERIA` -> what to write instead; for `sepstop.utils.registry.build`."""

__all__ = [
    "CRITERIA",
    "HINTS",
    "INPUTS",
    "ComponentMI",
    "Consistency",
    "InfoMax",
    "LabelMI",
    "NegativeEntropy",
    "NeighborMI",
    "PoolLoss",
    "RobustMI",
    "SelfConsistency",
    "Separability",
    "h0_separability",
]
