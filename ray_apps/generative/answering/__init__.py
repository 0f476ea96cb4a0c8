"""What happens to one request: a version is chosen, rules and limits apply, its engine answers, and the answer is logged."""
