"""What is watched: rules, alerts, the dashboard; `python -m deploy.monitoring` writes what they make."""
