"""Panels, queries and links in the one form that all dashboards use."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import yaml
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, logs, loki, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = models.DataSourceRef(type_val="prometheus", uid="prometheus")
LOKI: Final = models.DataSourceRef(type_val="loki", uid="loki")
TAG: Final = "spanloom"

SECONDS: Final = units.Seconds
PER_SECOND: Final = units.CountsPerSecond
REQUESTS: Final = units.RequestsPerSecond
RATIO: Final = units.PercentUnit
DOLLARS: Final = units.Dollars
BYTES: Final = units.BytesIEC
COUNT: Final = units.Short

AGENT: Final = 'job=~"$agent"'
"""Series that were scraped from the agent."""
AGENT_SPANS: Final = 'service_name=~"$agent"'
"""RED series of the agent's spans."""
SERVICE: Final = 'service_name=~"$service"'
"""RED series, and log lines, of every service that takes part."""
RATE: Final = "$__rate_interval"
RED: Final = "traces_span_metrics"
_WIDTH: Final = 24


@cache
def limit(record: str) -> float:
    """The value of a `…:limit:…` series, as the recording rules set it."""
    text = (ROOT / "prometheus/rules/recording.yml").read_text(encoding="utf-8")
    for group in yaml.safe_load(text)["groups"]:
        for rule in group["rules"]:
            if rule["record"] == record:
                return float(rule["expr"].removeprefix("vector(").removesuffix(")"))
    raise KeyError(record)


def query(
    expr: str, legend: str = "", *, exemplar: bool = False, instant: bool = False
) -> prometheus.Dataquery:
    """One PromQL query over the range on show, or at its end (`instant`)."""
    made = prometheus.Dataquery().expr(expr).datasource(PROMETHEUS).legend_format(legend)
    if instant:
        return made.instant().format(PromQueryFormat.TABLE)
    return made.range().exemplar(exemplar)


def quantile(
    q: float, histogram: str, labels: str, by: Sequence[str] = (), legend: str = ""
) -> prometheus.Dataquery:
    """A quantile with exemplars, which are found by the selector: a recorded series has none."""
    buckets = rate(f"{histogram}_bucket", labels, ", ".join((*by, "le")))
    return query(f"histogram_quantile({q}, {buckets})", legend, exemplar=True)


def rate(metric: str, labels: str, by: str = "") -> str:
    """PromQL: what is counted a second, added up by labels."""
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}(rate({metric}{{{labels}}}[{RATE}]))"


def share(metric: str, labels: str, bad: str, by: str) -> str:
    """PromQL: the share of a counter that is `bad`; 0, not nothing, where none is."""
    total = rate(metric, labels, by)
    return f"({rate(metric, f'{labels}, {bad}', by)} or 0 * {total}) / ({total} > 0)"


def limit_line(record: str) -> prometheus.Dataquery:
    """The series of a limit beside what it limits."""
    return query(record, "limit")


_Panel = TypeVar("_Panel", timeseries.Panel, stat.Panel, heatmap.Panel, table.Panel, logs.Panel)


def _placed(
    panel: _Panel, title: str, says: str, *, width: int, height: int, source: models.DataSourceRef
) -> _Panel:
    return panel.title(title).description(says).span(width).height(height).datasource(source)


def _with(panel: _Panel, targets: Sequence[prometheus.Dataquery | loki.Dataquery]) -> _Panel:
    for number, target in enumerate(targets):
        panel = panel.with_target(target.ref_id(chr(ord("A") + number)))
    return panel


def lines(
    title: str,
    says: str,
    *targets: prometheus.Dataquery | loki.Dataquery,
    unit: str = COUNT,
    width: int = 12,
    stacked: bool = False,
    source: models.DataSourceRef = PROMETHEUS,
) -> timeseries.Panel:
    """Series over time. A target with the legend `limit` is a dashed red line."""
    panel = _with(
        _placed(timeseries.Panel(), title, says, width=width, height=8, source=source), targets
    )
    panel = (
        panel.unit(unit)
        .min(0)
        .fill_opacity(30 if stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .override_by_name(
            "limit",
            [
                models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "red"}),
                models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
                models.DynamicConfigValue("custom.fillOpacity", 0),
                models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "A"}),
            ],
        )
    )
    if stacked:
        panel = panel.stacking(
            common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A")
        )
    return panel


def number(
    title: str,
    says: str,
    target: prometheus.Dataquery,
    *,
    unit: str = COUNT,
    bad_from: float | None = None,
    width: int = 4,
) -> stat.Panel:
    """The newest value, large; red from `bad_from` on."""
    target = target.exemplar(False)  # there is no axis to draw them on
    steps = [models.Threshold(value=None, color="green")]
    if bad_from is not None:
        steps.append(models.Threshold(value=bad_from, color="red"))
    return (
        _with(
            _placed(stat.Panel(), title, says, width=width, height=4, source=PROMETHEUS), [target]
        )
        .unit(unit)
        .graph_mode(common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    )


def latency_heatmap(title: str, says: str, histogram: str, labels: str) -> heatmap.Panel:
    """Requests by how long they took, one dot for each exemplar: a click opens its trace."""
    target = query(
        f"sum by (le) (increase({histogram}_bucket{{{labels}}}[{RATE}]))", "{{le}}", exemplar=True
    ).format(PromQueryFormat.HEATMAP)
    return (
        _with(
            _placed(heatmap.Panel(), title, says, width=12, height=8, source=PROMETHEUS), [target]
        )
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(SECONDS))
        .exemplars_color("rgba(255,96,0,0.9)")
        .show_legend()
        .show_tooltip()
    )


def rows(
    title: str,
    says: str,
    *targets: prometheus.Dataquery,
    unit: str = COUNT,
    width: int = 12,
    units_by_column: dict[str, str] | None = None,
) -> table.Panel:
    """A table of instant queries joined by their labels; each has one column of values."""
    panel = _with(
        _placed(table.Panel(), title, says, width=width, height=8, source=PROMETHEUS), targets
    )
    panel = panel.unit(unit).show_header(True)
    panel = panel.with_transformation(
        models.DataTransformerConfig(id_val="merge", options={})
    ).with_transformation(
        models.DataTransformerConfig(
            id_val="organize", options={"excludeByName": {"Time": True, "__name__": True}}
        )
    )
    for column, column_unit in (units_by_column or {}).items():
        panel = panel.override_by_name(column, [models.DynamicConfigValue("unit", column_unit)])
    return panel


def log_query(expr: str, legend: str = "") -> loki.Dataquery:
    """One LogQL query over the range on show."""
    return loki.Dataquery().expr(expr).datasource(LOKI).query_type("range").legend_format(legend)


def log_lines(title: str, says: str, expr: str, *, width: int = 24) -> logs.Panel:
    """Log lines, newest first; each has a link to its trace."""
    return (
        _with(
            _placed(logs.Panel(), title, says, width=width, height=10, source=LOKI),
            [log_query(expr)],
        )
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common.LogsSortOrder.DESCENDING)
    )


def traces_link(title: str, **search: str) -> builders.DashboardLink:
    """A link of a panel to a search in Jaeger, over the range and the agent on show."""
    pane: dict[str, Any] = {
        "datasource": "jaeger",
        "queries": [
            {
                "refId": "A",
                "datasource": {"type": "jaeger", "uid": "jaeger"},
                "queryType": "search",
                "service": "AGENT",
                "limit": 50,
                **search,
            }
        ],
        "range": {"from": "FROM", "to": "TO"},
    }
    panes = quote(json.dumps({"traces": pane}, separators=(",", ":")), safe="")
    # Grafana replaces its variables in an address only where their names stand unencoded.
    for word, variable in (("AGENT", "${agent}"), ("FROM", "${__from}"), ("TO", "${__to}")):
        panes = panes.replace(f"%22{word}%22", f"%22{variable}%22")
    return (
        builders.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .url(f"/explore?schemaVersion=1&orgId=1&panes={panes}")
        .target_blank(True)
    )


def _variable(name: str, label: str, metric: str, of: str) -> builders.QueryVariable:
    """A choice of one of the values that a label has."""
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(
            {
                "qryType": 1,
                "query": f"label_values({metric},{of})",
                "refId": "PrometheusVariableQueryEditor-VariableQuery",
            }
        )
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _all_of(variable: builders.QueryVariable) -> builders.QueryVariable:
    """The same with several values at once, all of them unless chosen otherwise."""
    return (
        variable.multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def board(uid: str, title: str, says: str) -> builders.Dashboard:
    """An empty dashboard with the variables `agent` and `service`, links and alerts."""
    return (
        builders.Dashboard(f"Spanloom / {title}")
        .uid(uid)
        .description(says)
        .tags([TAG])
        .readonly()
        .time("now-1h", "now")
        .timezone("browser")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(_variable("agent", "Agent", "agent_requests_total", "job"))
        .with_variable(
            _all_of(_variable("service", "Services", f"{RED}_calls_total", "service_name"))
        )
        .link(
            builders.DashboardLink("Dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(
            builders.AnnotationQuery()
            .name("Alerts")
            .datasource(PROMETHEUS)
            .expr('ALERTS{alertstate="firing"}')
            .icon_color("red")
            .enable(True)
        )
    )
