"""Definition of the flight-delay model: training data, gate, monitors, rollout and retraining policy."""

from datetime import timedelta

from examples.flights.features import CATEGORICAL, NUMERIC, flight_delay
from toque.functions.evaluation import Gate
from toque.functions.monitoring import DriftMonitor, PerformanceMonitor, QualityMonitor
from toque.functions.project import ModelDefinition
from toque.functions.retraining.policy import RetrainingPolicy, TrainingWindow
from toque.functions.rollout import RolloutPolicy
from toque.registry import AutomaticApproval, GateData, ModelPolicy

ENTITIES = "flights/entities"

gate = Gate(max_log_loss_ratio={"constant": 0.98, "logistic": 1.01}, max_champion_ratio=1.0)
# Whatever a caller asks for, versions are judged by these limits, on flights later than those they learnt from.
judged_by = gate.demand(GateData(table="training/flight-delay/*", entities=ENTITIES, label="late"))

delay_model = ModelDefinition(
    name="flight-delay",
    service=flight_delay.name,
    entities=ENTITIES,
    label="late",
    numeric=tuple(NUMERIC),
    categorical=tuple(CATEGORICAL),
    gate=gate,
    monitors=(QualityMonitor(units={"temp": "F", "dewp": "F"}), PerformanceMonitor(), DriftMonitor()),
    # A storm delays a whole day, so verdicts count days, not flights; four weeks of labels are some 4,000.
    rollout=RolloutPolicy(
        planned_labels=4_000, shadow_min_labels=600, shadow_timeout=timedelta(days=14), mismatch_alpha=0.001
    ),
    retraining=RetrainingPolicy(
        # No challenger learns from less than the first model did, which had three months.
        windows=(TrainingWindow(name="all"), TrainingWindow(name="recent", days=120)),
        cooldown=timedelta(days=14),
        backoff=1.0,
        settle=timedelta(days=7),
        budget=4,
    ),
    inspect="0 0 */2 * *",
    governance=ModelPolicy(
        guarded=frozenset({"champion"}),
        approvals=1,
        gates=(judged_by,),
        # The year is replayed without people; a renewal must still win its rollout against the champion.
        automatic_approval=AutomaticApproval(reason="renewals of a recipe that a person approved"),
    ),
)
MODELS = [delay_model]
