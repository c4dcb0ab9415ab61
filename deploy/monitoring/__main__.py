"""Write `dashboard.json` from the panels and `prometheus_rule.yaml` from the rule files."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from deploy.monitoring.panels import ROWS, Panel

FOLDER = Path(__file__).resolve().parent
RULES = ("recording_rules.yaml", "alerting_rules.yaml")

POD_LABELS = 'namespace=~"$namespace", pod=~"$pod"'
"""Label matchers of the pods selected by the dashboard's variables."""

ROW_HEIGHT, PANEL_HEIGHT, GRID_WIDTH = 1, 8, 24
"""Units of Grafana's grid."""

Json = dict[str, Any]


def dashboard() -> Json:
    """Return the dashboard in Grafana's format."""
    panels: list[Json] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": _area(0, top, GRID_WIDTH, ROW_HEIGHT)})
        top += ROW_HEIGHT
        width = GRID_WIDTH // len(row)
        panels += [
            _panel(panel, _area(column * width, top, width, PANEL_HEIGHT)) for column, panel in enumerate(row)
        ]
        top += PANEL_HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "triton-face-features",
        "uid": "triton-face",
        "tags": ["triton"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def prometheus_rule() -> Json:
    """Return the rules as the Prometheus Operator's PrometheusRule."""
    groups = [group for name in RULES for group in yaml.safe_load((FOLDER / name).read_text())["groups"]]
    labels = {"app.kubernetes.io/name": "triton-face"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "triton-face", "labels": labels},
        "spec": {"groups": groups},
    }


def generated_files() -> dict[Path, str]:
    """Return the text of each generated file."""
    origin = f"# Written by `make monitoring` from {' and '.join(RULES)}.\n"
    rule = yaml.dump(prometheus_rule(), Dumper=_BlockDumper, sort_keys=False, width=1000)
    return {
        FOLDER / "dashboard.json": json.dumps(dashboard(), indent=2) + "\n",
        FOLDER / "prometheus_rule.yaml": origin + rule,
    }


class _BlockDumper(yaml.SafeDumper):
    """Writes multi-line strings as block literals."""


_BlockDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _area(left: int, top: int, width: int, height: int) -> Json:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, area: Json) -> Json:
    source = {"type": "prometheus", "uid": "${datasource}"}
    defaults: Json = {"unit": panel.unit, "min": 0}
    if panel.threshold is not None:
        defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
        steps = [{"color": "green", "value": None}, {"color": "orange", "value": panel.threshold}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": source,
            "expr": query.expression.replace("...", POD_LABELS),
            "legendFormat": query.legend,
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for number, query in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": area,
        "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }


def _variables() -> list[Json]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    multi_select = {"type": "query", "datasource": source, "refresh": 2, "includeAll": True, "multi": True}
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        multi_select
        | {
            "name": "namespace",
            "query": 'label_values(up{job="triton-face"}, namespace)',
            "current": {"text": "All", "value": "$__all"},
        },
        multi_select
        | {
            "name": "pod",
            "query": 'label_values(up{job="triton-face", namespace=~"$namespace"}, pod)',
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def main() -> int:
    """Write the files, or with --check report those that are out of date."""
    parser = argparse.ArgumentParser(prog="python -m deploy.monitoring", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    check = parser.parse_args().check
    files = generated_files()
    stale = [path for path in files if not path.exists() or path.read_text() != files[path]]
    for path in stale:
        if check:
            print(f"{path} is out of date: run `make monitoring`")
        else:
            path.write_text(files[path])
            print(f"wrote {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
