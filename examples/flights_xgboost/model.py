"""Definition of the flight-delay model with boosted trees in place of the network."""

from examples.flights.model import delay_model
from functions.training import TabularParams, XGBoost

boosted_model = delay_model.model_copy(
    update={
        "training": TabularParams(),
        "trainer": XGBoost(rounds=300, lr=0.08, max_depth=5, leaf_rows=20.0),
    }
)
MODELS = [boosted_model]
