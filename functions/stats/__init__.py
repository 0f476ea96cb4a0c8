"""Statistics that stay valid at every look: drift, change, and comparisons of arms.

Pure functions and frozen values over numbers; nothing here knows of models, stores, clocks or Ray.
"""

from toque.functions.stats import drift
from toque.functions.stats.change import Adwin, Cusum, PageHinkley
from toque.functions.stats.comparison.bandit import Allocation, epsilon_greedy, thompson
from toque.functions.stats.comparison.betting import BettingCS, betting_cs
from toque.functions.stats.comparison.cluster_sums import LARGEST, ClusterSums, SeriesSums
from toque.functions.stats.comparison.counts import (
    QuantileTest,
    SequentialCounts,
    counted_quantile_p,
    excess_p,
    quantile_test,
    rate_above_p,
    rate_below_p,
    rate_floor,
    sequential_counts,
)
from toque.functions.stats.comparison.planner import (
    GroupSequentialBounds,
    RunPlan,
    group_sequential_bounds,
    minimum_detectable_effect,
    plan_run,
)
from toque.functions.stats.comparison.sequential import (
    AsymptoticCS,
    CupedEffect,
    Effect,
    asymptotic_cs,
    asymptotic_threshold,
    block_means,
    cuped,
    difference,
    normal_mixture_bound,
    ratio,
    ratio_effect,
    relative_lift,
    stratified_effect,
    winsorize,
)
from toque.functions.stats.estimate import (
    ClassSketch,
    ScoreSketch,
    estimate_auc,
    estimate_class_losses,
    estimate_losses,
    estimate_shares,
)
from toque.functions.stats.moments import CoMoments, Moments
from toque.functions.stats.multiplicity import LordPlusPlus, benjamini_hochberg, holm, k_of_n
from toque.functions.stats.multivariate import domain_classifier, mmd
from toque.functions.stats.season import find_season
from toque.functions.stats.sketch import TableSketch, one_row_per_unit
from toque.functions.stats.slices import slices_above, worst_slices

__all__ = [
    "LARGEST",
    "Adwin",
    "Allocation",
    "AsymptoticCS",
    "BettingCS",
    "ClassSketch",
    "ClusterSums",
    "CoMoments",
    "CupedEffect",
    "Cusum",
    "Effect",
    "GroupSequentialBounds",
    "LordPlusPlus",
    "Moments",
    "PageHinkley",
    "QuantileTest",
    "RunPlan",
    "ScoreSketch",
    "SequentialCounts",
    "SeriesSums",
    "TableSketch",
    "asymptotic_cs",
    "asymptotic_threshold",
    "benjamini_hochberg",
    "betting_cs",
    "block_means",
    "counted_quantile_p",
    "cuped",
    "difference",
    "domain_classifier",
    "drift",
    "epsilon_greedy",
    "estimate_auc",
    "estimate_class_losses",
    "estimate_losses",
    "estimate_shares",
    "excess_p",
    "find_season",
    "group_sequential_bounds",
    "holm",
    "k_of_n",
    "minimum_detectable_effect",
    "mmd",
    "normal_mixture_bound",
    "one_row_per_unit",
    "plan_run",
    "quantile_test",
    "rate_above_p",
    "rate_below_p",
    "rate_floor",
    "ratio",
    "ratio_effect",
    "relative_lift",
    "sequential_counts",
    "slices_above",
    "stratified_effect",
    "thompson",
    "winsorize",
    "worst_slices",
]
