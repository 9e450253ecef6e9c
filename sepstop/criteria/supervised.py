"""Measures of class separability that need labels.

No run is decided by them. `sepstop.report.html` shows them if the pool has labels, and
`scripts/reproduce_paper.py` compares them with label-free scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, calinski_harabasz_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Points = NDArray[np.floating]
Labels = NDArray[np.integer]


def fisher_ratio(points: Points, labels: Labels) -> float:
    """Fisher discriminant ratio: trace of the scatter between classes over that within classes.

    Args:
        points: ``(n, D)``, any float dtype.
        labels: ``(n,)`` integers.

    Returns:
        At least 0; infinite if all points of each class are equal.

    References:
        Fisher, The Use of Multiple Measurements in Taxonomic Problems, 1936.
    """
    mean = points.mean(axis=0)
    between = within = 0.0
    for label in np.unique(labels):
        members = points[labels == label]
        center = members.mean(axis=0)
        between += len(members) * float(np.square(center - mean).sum())
        within += float(np.square(members - center).sum())
    return between / within if within > 0 else np.inf


def thornton(points: Points, labels: Labels) -> float:
    """Share of points whose nearest other point has the same class.

    Args:
        points: ``(n, D)``, any float dtype; n >= 2.
        labels: ``(n,)`` integers.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: fewer than 2 points.

    References:
        Thornton, Separability is a Learner's Best Friend, 1998.
    """
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(return_distance=False)
    # Without arguments, kneighbors excludes each point itself.
    return float((labels[nearest[:, 0]] == labels).mean())


def cross_validated(points: Points, labels: Labels, folds: int = 3) -> tuple[float, float]:
    """Out-of-fold accuracy and ROC-AUC of a logistic regression.

    Args:
        points: ``(n, D)``, any float dtype.
        labels: ``(n,)`` integers; at least ``folds`` of each class.
        folds: number of stratified folds, shuffled with a fixed seed.

    Returns:
        Accuracy and macro-averaged one-vs-rest ROC-AUC, each from 0 to 1.

    Raises:
        ValueError: ``folds`` exceeds the number of points in each class.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    p = cross_val_predict(model, points, labels, cv=split, method="predict_proba")
    classes = np.unique(labels)
    accuracy = accuracy_score(labels, classes[p.argmax(axis=1)])
    scores = p[:, 1] if len(classes) == 2 else p
    return float(accuracy), float(roc_auc_score(labels, scores, multi_class="ovr"))


def all_measures(points: Points, labels: Labels) -> dict[str, float]:
    """All measures of this module, and the Calinski-Harabasz index, by their names in tables.

    Args:
        points, labels: as in `cross_validated`.
    """
    accuracy, auc = cross_validated(points, labels)
    return {
        "FDR": fisher_ratio(points, labels),
        "LR accuracy": accuracy,
        "ROC-AUC": auc,
        "Thornton": thornton(points, labels),
        "Calinski-Harabasz": float(calinski_harabasz_score(points, labels)),
    }
