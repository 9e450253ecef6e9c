"""Measures of class separability that know the labels; what a label-free score is held against."""

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
    """Fisher discriminant ratio: the trace of the scatter between classes over that within.

    ``(n, D)``, ``(n,)`` -> at least 0; infinite where no class has any spread.
    """
    mean = points.mean(axis=0)
    between = within = 0.0
    for label in np.unique(labels):
        members = points[labels == label]
        centre = members.mean(axis=0)
        between += len(members) * float(np.square(centre - mean).sum())
        within += float(np.square(members - centre).sum())
    return between / within if within > 0 else np.inf


def thornton(points: Points, labels: Labels) -> float:
    """Share of points whose nearest other point has their class, from 0 to 1.

    References:
        Thornton, Separability is a Learner's Best Friend, 1998.
    """
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(return_distance=False)
    # Without arguments, kneighbors leaves each point itself out.
    return float((labels[nearest[:, 0]] == labels).mean())


def cross_validated(points: Points, labels: Labels, folds: int = 3) -> tuple[float, float]:
    """Accuracy and ROC-AUC (one against the rest, macro) of a logistic regression, out of fold."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    p = cross_val_predict(model, points, labels, cv=split, method="predict_proba")
    classes = np.unique(labels)
    accuracy = accuracy_score(labels, classes[p.argmax(axis=1)])
    scores = p[:, 1] if len(classes) == 2 else p
    return float(accuracy), float(roc_auc_score(labels, scores, multi_class="ovr"))


def all_measures(points: Points, labels: Labels) -> dict[str, float]:
    """Every measure by its name in tables."""
    accuracy, auc = cross_validated(points, labels)
    return {
        "FDR": fisher_ratio(points, labels),
        "LR accuracy": accuracy,
        "ROC-AUC": auc,
        "Thornton": thornton(points, labels),
        "Calinski-Harabasz": float(calinski_harabasz_score(points, labels)),
    }
