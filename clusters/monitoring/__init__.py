"""Files for Prometheus, Alertmanager and Grafana: what is recorded, what people are told, and what they look at."""
