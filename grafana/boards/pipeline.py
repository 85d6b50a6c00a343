"""Pipeline health: does everything arrive that services, Collector and backends were given?"""

from grafana_foundation_sdk.builders import dashboard as builders

from grafana.boards.panels import (
    BYTES,
    COUNT,
    PER_SECOND,
    RATE,
    RATIO,
    RED,
    board,
    limit,
    limit_line,
    lines,
    number,
    query,
    rows,
)

_SIGNALS = {"spans": "spans", "metric_points": "metric points", "log_records": "log records"}


def dashboard() -> builders.Dashboard:
    """Losses first, then the way of the data from service to backend."""
    made = board("spanloom-pipeline", "Pipeline health", "Service ▸ Collector ▸ backends.")
    made = (
        made.with_panel(
            number(
                "Targets down",
                "Processes that do not answer their scrapes.",
                query("count(up == 0) or vector(0)"),
                bad_from=1,
                width=6,
            )
        )
        .with_panel(
            number(
                "Lost by services",
                "Spans and log records of the range on show that never reached the Collector.",
                query("sum(increase(spanloom_telemetry_dropped_total[$__range]))"),
                bad_from=1,
                width=6,
            )
        )
        .with_panel(
            number(
                "Lost by Collectors",
                "Items of the range on show that an exporter gave up.",
                query("sum(increase(instance_exporter:otelcol_exporter_lost:total[$__range]))"),
                bad_from=1,
                width=6,
            )
        )
        .with_panel(
            number(
                "Fullest queue",
                "Of all exporters of all Collectors.",
                query("max(instance_exporter:otelcol_exporter_queue:ratio)"),
                unit=RATIO,
                bad_from=limit("collector:limit:queue_ratio"),
                width=6,
            )
        )
    )
    made = (
        made.with_row(builders.Row("Services"))
        .with_panel(
            lines(
                "Lost",
                "Spans and log records a second, by reason; the runbook says what each means.",
                query(
                    "sum by (job, signal, reason)"
                    f" (rate(spanloom_telemetry_dropped_total[{RATE}])) > 0"
                    f" or sum by (job) (rate(spanloom_telemetry_dropped_total[{RATE}])) * 0",
                    "{{job}} {{signal}} {{reason}}",
                ),
                unit=PER_SECOND,
            )
        )
        .with_panel(
            lines(
                "Waiting in spools",
                "What services hold on disk and the Collector has not taken.",
                query(
                    "sum by (job, signal) (spanloom_telemetry_spool_waiting)", "{{job}} {{signal}}"
                ),
            )
        )
    )
    made = (
        made.with_row(builders.Row("Collector"))
        .with_panel(
            lines(
                "Taken",
                "Items a second, by Collector and signal. Gateways take what agents took.",
                *(
                    query(
                        f"sum by (instance) (rate(otelcol_receiver_accepted_{signal}[{RATE}]))",
                        f"{{{{instance}}}} {name}",
                    )
                    for signal, name in _SIGNALS.items()
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Refused",
                "Items a second: the memory limit, or a full queue. Senders try again.",
                query(
                    "sum by (instance, receiver)"
                    f" (rate(instance_receiver:otelcol_receiver_refused:total[{RATE}]))",
                    "{{instance}} {{receiver}}",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Sent",
                "Items a second to each backend.",
                query(
                    "sum by (exporter)"
                    f" (rate(instance_exporter:otelcol_exporter_sent:total[{RATE}]))",
                    "{{exporter}}",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Queues",
                "How full, by exporter; the line is where CollectorQueueNearFull fires.",
                query(
                    "max by (instance, exporter, data_type)"
                    " (instance_exporter:otelcol_exporter_queue:ratio)",
                    "{{instance}} {{exporter}} {{data_type}}",
                ),
                limit_line("collector:limit:queue_ratio"),
                unit=RATIO,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Queued",
                "On disk, by exporter.",
                query(
                    "sum by (exporter, data_type) (otelcol_exporter_queue_size)",
                    "{{exporter}} {{data_type}}",
                ),
                unit=BYTES,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Given up",
                "Items a second that are lost: the backend refused them for good.",
                query(
                    "sum by (exporter)"
                    f" (rate(instance_exporter:otelcol_exporter_lost:total[{RATE}]))",
                    "{{exporter}}",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
    )
    tail = "otelcol_processor_tail_sampling"
    made = (
        made.with_row(builders.Row("Tail sampling: gateways only"))
        .with_panel(
            lines(
                "Decided",
                "Traces a second that are kept and left out.",
                query(
                    f"sum by (decision) (rate({tail}_global_count_traces_sampled[{RATE}]))",
                    "{{decision}}",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Waiting for a decision",
                "Traces in memory, by gateway; at TAIL_NUM_TRACES senders have to wait.",
                query(f"sum by (instance) ({tail}_sampling_traces_on_memory)", "{{instance}}"),
                width=8,
            )
        )
        .with_panel(
            lines(
                "Dropped undecided",
                "Traces a second that left memory before their decision: more memory, or gateways.",
                query(
                    f"sum by (instance) (rate({tail}_sampling_trace_dropped_too_early[{RATE}]))",
                    "{{instance}}",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
    )
    reap = 'job="spanloom-reap"'
    made = (
        made.with_row(builders.Row("Reaper"))
        .with_panel(
            lines(
                "Open, and ends that wait",
                "Spans that have not ended, of all processes, and ends of dead ones' spans that the"
                " Collector has not taken yet.",
                query(f"sum(spanloom_inflight_spans{{{reap}}})", "open"),
                query(f"sum(spanloom_reap_outbox_spans{{{reap}}})", "waiting"),
                unit=COUNT,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Ended for dead processes",
                "Spans a second, by what became of their process; refused ones are lost.",
                query(
                    f"sum by (error_type) (rate(spanloom_reaped_spans_total{{{reap}}}[{RATE}]))"
                    " or vector(0)",
                    "{{error_type}}",
                ),
                query(f"sum(rate(spanloom_reap_refused_spans_total{{{reap}}}[{RATE}]))", "refused"),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            rows(
                "Listening",
                "1: the Collector answers the reaper, and silence of a process counts.",
                query(f"min(spanloom_reap_collector_up{{{reap}}})", instant=True),
                query(f"min(spanloom_reap_hearing{{{reap}}})", instant=True),
                width=8,
            )
        )
    )
    made = (
        made.with_row(builders.Row("Backends"))
        .with_panel(
            lines(
                "Stored",
                "Spans, log lines and samples a second.",
                query(
                    f'sum(rate(otelcol_exporter_sent_spans_total{{job="jaeger"}}[{RATE}]))',
                    "Jaeger: spans",
                ),
                query(f"sum(rate(loki_distributor_lines_received_total[{RATE}]))", "Loki: lines"),
                query(
                    f"sum(rate(prometheus_tsdb_head_samples_appended_total[{RATE}]))",
                    "Prometheus: samples",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Refused by backends",
                "Log lines over a limit of Loki, samples that Prometheus finds too old, spans that"
                " Jaeger could not store.",
                query(
                    f"sum by (reason) (rate(loki_discarded_samples_total[{RATE}])) or vector(0)",
                    "Loki {{reason}}",
                ),
                query(
                    f"sum(rate(prometheus_tsdb_too_old_samples_total[{RATE}])) or vector(0)",
                    "Prometheus too old",
                ),
                query(
                    f'sum(rate(otelcol_exporter_send_failed_spans_total{{job="jaeger"}}[{RATE}]))'
                    " or vector(0)",
                    "Jaeger",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Memory",
                "Resident, by program.",
                query(
                    "sum by (job) (otelcol_process_memory_rss or otelcol_process_memory_rss_bytes"
                    " or process_resident_memory_bytes)",
                    "{{job}}",
                ),
                unit=BYTES,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Series and exemplars",
                "What Prometheus holds. Series that grow without end: a label has too many values.",
                query("sum(prometheus_tsdb_head_series)", "series"),
                query("sum(prometheus_tsdb_exemplar_exemplars_in_storage)", "exemplars"),
                unit=COUNT,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Spans without series of their own",
                "Spans a second beyond the cardinality limit of the RED series, by service.",
                query(
                    f'sum by (service_name) (rate({RED}_calls_total{{otel_metric_overflow="true"}}'
                    f"[{RATE}])) or vector(0)",
                    "{{service_name}}",
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            rows(
                "Targets",
                "1 answers, 0 does not.",
                query("sum by (job, instance) (up)", instant=True),
                width=8,
            )
        )
    )
    return made.with_row(builders.Row("Alerts")).with_panel(
        rows(
            "Firing and about to",
            "Alerts by state; docs/runbook.md has a section for each.",
            query(
                "count by (alertname, alertstate, severity, job)"
                ' (ALERTS{alertstate=~"firing|pending"})',
                instant=True,
            ),
            width=24,
        )
    )
