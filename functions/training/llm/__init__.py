"""Fine-tuning of networks that are Hugging Face folders, by the platform's own loop, checkpoints and workers.

`transformers` and `peft` (the extra `llm`) are imported when a model is trained, not before.
"""

from toque.functions.training.llm.fine_tune import FineTune, TextClassifier, fine_tune
from toque.functions.training.llm.serving import serve_fine_tune
from toque.functions.training.llm.settings import Lora, Preference

__all__ = ["FineTune", "Lora", "Preference", "TextClassifier", "fine_tune", "serve_fine_tune"]
