"""Grafana's dashboards as code: `python -m grafana.boards` writes grafana/dashboards/*.json.

One module a dashboard; `panels` has what they share. Limits are read from the recording rules, so
that a line on a panel is where its alert fires.
"""
