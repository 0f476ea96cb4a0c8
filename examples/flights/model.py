"""The model: what it learns from, what it must prove, how it is watched and how its successors come to power."""

from datetime import timedelta

from examples.flights.features import CATEGORICAL, NUMERIC, flight_delay
from functions.evaluation import Gate
from functions.monitoring import DriftMonitor, PerformanceMonitor
from functions.project import ModelDefinition
from functions.retraining_policy import RetrainingPolicy, TrainingWindow
from functions.rollout import RolloutPolicy
from registry import ModelPolicy

ENTITIES = "flights/entities"

delay_model = ModelDefinition(
    name="flight-delay",
    service=flight_delay.name,
    entities=ENTITIES,
    label="late",
    numeric=tuple(NUMERIC),
    categorical=tuple(CATEGORICAL),
    gate=Gate(max_log_loss_ratio={"constant": 0.98, "logistic": 1.01}, max_ece=0.1),
    monitors=(PerformanceMonitor(), DriftMonitor()),
    rollout=RolloutPolicy(planned_labels=1_500, shadow_min_labels=600, shadow_timeout=timedelta(days=14)),
    retraining=RetrainingPolicy(
        windows=(TrainingWindow(name="all"), TrainingWindow(name="recent", days=75)),
        cooldown=timedelta(days=21),
        settle=timedelta(days=7),
        budget=4,
    ),
    inspect="0 0 */2 * *",
    governance=ModelPolicy(guarded=frozenset({"champion"}), approvals=1, gates=("offline",)),
)
MODELS = [delay_model]
