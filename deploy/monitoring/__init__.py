"""Recording rules, alerts and dashboard; `python -m deploy.monitoring` generates files from them."""
