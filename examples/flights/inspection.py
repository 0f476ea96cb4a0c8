"""What runs by itself: every second night the log is drained and the model inspected, on the platform's clock."""

from examples.flights.model import delay_model
from functions import Cron, Retries, function
from functions.prediction_log import drain_predictions
from functions.retraining import Inspected, inspect_model


@function(schedule=Cron("0 0 */2 * *"), timeout_s=1800, retries=Retries(max_attempts=3), max_concurrency=1)
def inspect_flights() -> Inspected:
    """Bring the prediction log into its tables, then watch, judge the rollout, and retrain if the policy says so."""
    drain_predictions()
    return inspect_model(delay_model.name)
