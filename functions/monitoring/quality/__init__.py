"""Data quality of logged requests: broken feeds, changed units, and the incidents they open."""
