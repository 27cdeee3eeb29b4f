"""The solver finds what scikit-learn finds, and averaging fold models gives one model of the same kind."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from policies.blocks import Features
from policies.candidates import fit_candidate
from policies.folds import balanced_folds, random_folds
from policies.measuring import score
from policies.surrogates import Labels, SoftmaxModel, average, cosines, fit_softmax
