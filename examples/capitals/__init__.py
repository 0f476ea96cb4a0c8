"""Language model on questions with a right answer: prompts are judged, tested on traffic, promoted or refused."""
