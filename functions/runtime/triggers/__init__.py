"""What starts a function without a caller: schedules, published events, and waiting workflows."""
