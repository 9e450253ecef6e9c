"""Label-free scores of a model: a pure function and a thin class each.

A criterion is called with what it names in ``needs``, in that order; `INPUTS` lists what there is.
One that reads the logits in a way that is right for some outputs only names them in ``outputs``:
"classes" (one class out of k) or "labels" (yes or no for each).
"""

from sepstop.criteria.clusters import CalinskiHarabasz, Silhouette
from sepstop.criteria.component_mi import ClusterEntropy, ClusterInformation, ComponentInformation
from sepstop.criteria.label_mi import LabelInformation
from sepstop.criteria.neighbor_mi import Information
from sepstop.criteria.persistence import TotalPersistence
from sepstop.criteria.predictions import BNM, SND, Churn, Consistency, InfoMax, NegativeEntropy
from sepstop.criteria.separability import Separability, h0_separability
from sepstop.criteria.spectrum import (
    AlphaReQ,
    Coherence,
    NESum,
    RankMe,
    SelfClustering,
    StableRank,
)
from sepstop.criteria.weights import WeightWatcher

INPUTS = {
    "points": "embeddings of a resample, (B, n, D)",
    "logits": "the model's logits on them, (B, n, k)",
    "previous_logits": "the same at the evaluation before, (B, n, k)",
    "corrupted_logits": "those of the same texts without 30 % of their tokens, (B, n, k)",
    "neighbors": "the 3 nearest neighbours of each text at each of the S evaluations so far, as "
    "places in the cloud, (B, n, S, 3)",
    "neighbor_classes": "predicted classes of the 3 nearest neighbours of each text, as they were "
    "at each of the S evaluations so far, (B, n, S, 3)",
    "model": "the model; a score of it alone is one number, ()",
}

CRITERIA: dict[str, type] = {
    "separability": Separability,
    "information": Information,
    "label_information": LabelInformation,
    "component_information": ComponentInformation,
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
    "entropy": NegativeEntropy,
    "infomax": InfoMax,
    "bnm": BNM,
    "snd": SND,
    "churn": Churn,
    "consistency": Consistency,
    "weightwatcher": WeightWatcher,
}

__all__ = [
    "CRITERIA",
    "INPUTS",
    "ComponentInformation",
    "InfoMax",
    "Information",
    "LabelInformation",
    "Separability",
    "h0_separability",
]
