"""Criteria for comparison.

They are measured beside the recommended ones in docs/evidence.md. In Python, pass the object; in
YAML and on the command line write "sepstop.bench.criteria:RankMe", or a mapping such as
``{"name": "sepstop.bench.criteria:SND", "temperature": 0.1}``.
"""

from sepstop.bench.criteria.clusters import CalinskiHarabasz, Silhouette
from sepstop.bench.criteria.components import ClusterEntropy, ClusterInformation
from sepstop.bench.criteria.persistence import TotalPersistence
from sepstop.bench.criteria.predictions import BNM, SND, Churn
from sepstop.bench.criteria.spectrum import (
    AlphaReQ,
    Coherence,
    NESum,
    RankMe,
    SelfClustering,
    StableRank,
)

COMPARED: dict[str, type] = {
    "cluster_entropy": ClusterEntropy,
    "cluster_information": ClusterInformation,
    "total_persistence": TotalPersistence,
    "rankme": RankMe,
    "alpha_req": AlphaReQ,
    "nesum": NESum,
    "stable_rank": StableRank,
    "self_clustering": SelfClustering,
    "coherence": Coherence,
    "silhouette": Silhouette,
    "calinski_harabasz": CalinskiHarabasz,
    "bnm": BNM,
    "snd": SND,
    "churn": Churn,
}
"""The criteria for comparison by their names in the bench's tables."""

__all__ = [
    "BNM",
    "COMPARED",
    "SND",
    "AlphaReQ",
    "CalinskiHarabasz",
    "Churn",
    "ClusterEntropy",
    "ClusterInformation",
    "Coherence",
    "NESum",
    "RankMe",
    "SelfClustering",
    "Silhouette",
    "StableRank",
    "TotalPersistence",
]
