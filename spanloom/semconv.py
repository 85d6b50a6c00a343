"""The only place where attribute, span, event and metric names are written.

GenAI names follow open-telemetry/semantic-conventions-genai as of 2026-08 (still in
development there; `invoke_node` is its open proposal #187/#188). The frozen constants in
`opentelemetry-semantic-conventions` predate `cache_write`, `retrieval.top_k` and others,
so the strings are kept here. Names under `spanloom.` and `langgraph.` are our own.
"""

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# --- resource -----------------------------------------------------------------------------------
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SERVICE_NAMESPACE: Final = "service.namespace"
DEPLOYMENT_ENVIRONMENT_NAME: Final = "deployment.environment.name"

# --- general ------------------------------------------------------------------------------------
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
EXCEPTION_EVENT: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
URL_PATH: Final = "url.path"
URL_FULL: Final = "url.full"
URL_QUERY: Final = "url.query"
SESSION_ID: Final = "session.id"
USER_ID: Final = "user.id"

# --- GenAI: operations (values of gen_ai.operation.name) ----------------------------------------
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
OP_CHAT: Final = "chat"
OP_TEXT_COMPLETION: Final = "text_completion"
OP_GENERATE_CONTENT: Final = "generate_content"
OP_EMBEDDINGS: Final = "embeddings"
OP_RETRIEVAL: Final = "retrieval"
OP_RERANK: Final = "rerank"
"""Ours: the conventions define no rerank operation."""
OP_EXECUTE_TOOL: Final = "execute_tool"
OP_INVOKE_AGENT: Final = "invoke_agent"
OP_INVOKE_WORKFLOW: Final = "invoke_workflow"
OP_INVOKE_NODE: Final = "invoke_node"

LLM_OPERATIONS: Final = frozenset({OP_CHAT, OP_TEXT_COMPLETION, OP_GENERATE_CONTENT})
"""Operations that are one inference request: the only spans whose tokens are summed."""

# --- GenAI: attributes --------------------------------------------------------------------------
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
GEN_AI_OUTPUT_TYPE: Final = "gen_ai.output.type"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K: Final = "gen_ai.request.top_k"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_TOOL_NAME: Final = "gen_ai.tool.name"
GEN_AI_TOOL_TYPE: Final = "gen_ai.tool.type"
GEN_AI_TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
GEN_AI_TOOL_DESCRIPTION: Final = "gen_ai.tool.description"
GEN_AI_TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
GEN_AI_TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
GEN_AI_AGENT_NAME: Final = "gen_ai.agent.name"
GEN_AI_WORKFLOW_NAME: Final = "gen_ai.workflow.name"
GEN_AI_NODE_NAME: Final = "gen_ai.node.name"
GEN_AI_DATA_SOURCE_ID: Final = "gen_ai.data_source.id"
GEN_AI_RETRIEVAL_TOP_K: Final = "gen_ai.retrieval.top_k"
GEN_AI_RETRIEVAL_QUERY_TEXT: Final = "gen_ai.retrieval.query.text"
GEN_AI_RETRIEVAL_DOCUMENTS: Final = "gen_ai.retrieval.documents"
GEN_AI_EMBEDDINGS_DIMENSION_COUNT: Final = "gen_ai.embeddings.dimension.count"
GEN_AI_SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
GEN_AI_TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
CONTENT_ATTRIBUTES: Final = frozenset(
    {
        GEN_AI_SYSTEM_INSTRUCTIONS,
        GEN_AI_INPUT_MESSAGES,
        GEN_AI_OUTPUT_MESSAGES,
        GEN_AI_TOOL_DEFINITIONS,
        GEN_AI_TOOL_CALL_ARGUMENTS,
        GEN_AI_TOOL_CALL_RESULT,
        GEN_AI_RETRIEVAL_QUERY_TEXT,
        GEN_AI_RETRIEVAL_DOCUMENTS,
    }
)
"""What people, models and tools said: on spans only where it is asked for, nowhere else."""
GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"
GEN_AI_TOKEN_MODALITY: Final = "gen_ai.token.modality"

# --- LangGraph and our own ----------------------------------------------------------------------
LANGGRAPH_STEP: Final = "langgraph.step"
LANGGRAPH_ATTEMPT: Final = "langgraph.attempt"
LANGGRAPH_TRIGGERS: Final = "langgraph.triggers"
LANGGRAPH_CHECKPOINT_NS: Final = "langgraph.checkpoint_ns"

SPANLOOM_OUTCOME: Final = "spanloom.outcome"
OUTCOME_OK: Final = "ok"
OUTCOME_ERROR: Final = "error"
OUTCOME_TIMEOUT: Final = "timeout"
OUTCOME_CANCELLED: Final = "cancelled"
OUTCOME_INTERRUPTED: Final = "interrupted"
OUTCOME_HANDOFF: Final = "handoff"
OUTCOME_ABANDONED_STREAM: Final = "abandoned_stream"
SPANLOOM_DEADLINE_MS: Final = "spanloom.deadline_ms"
SPANLOOM_INCOMPLETE: Final = "spanloom.incomplete"
SPANLOOM_IN_FLIGHT: Final = "spanloom.in_flight"
"""True on what a query shows of a span that has not ended; no finished span has it."""
SPANLOOM_COST_USD: Final = "spanloom.cost.usd"
"""Dollars for an LLM request; on the spans above, the sum over those below that have a price."""
SPANLOOM_COST_PARTIAL: Final = "spanloom.cost.partial"
"""True where more was billed than the cost says: no price for some request, or an answer cut."""
SPANLOOM_USAGE_INPUT_TOKENS: Final = "spanloom.usage.input_tokens"
"""Sum over the LLM spans below a tool, node, agent or workflow span."""
SPANLOOM_USAGE_OUTPUT_TOKENS: Final = "spanloom.usage.output_tokens"
SPANLOOM_USAGE_ESTIMATED: Final = "spanloom.usage.estimated"
SPANLOOM_STREAM_CHUNKS: Final = "spanloom.stream.chunks"
SPANLOOM_RESULT_COUNT: Final = "spanloom.result.count"
"""Documents, passages or vectors a retrieval, rerank or embeddings span returned."""
SPANLOOM_LINK_KIND: Final = "spanloom.link.kind"
LINK_UNTRUSTED_CALLER: Final = "untrusted_caller"
LINK_RESUMED_FROM: Final = "resumed_from"
SPANLOOM_RESUME_WAITED_MS: Final = "spanloom.resume.waited_ms"
"""On a resumed run: how long its last checkpoint had lain, which is how long it waited for an
answer, and what the interrupted node did before it asked."""

EVENT_SPAN_OPEN: Final = "spanloom.span.open"
EVENT_PROCESS_HEARTBEAT: Final = "spanloom.process.heartbeat"
EVENT_SPAN_ENDED: Final = "spanloom.span.ended"
"""This announced span ended, or is about to be ended by who found its dead process's spool: what
is known of it is sent as a span."""
SPANLOOM_SPAN_GIVEN_UP: Final = "spanloom.span.given_up"
"""On that event: no span is sent. The reaper has ended it, or is to do so now."""
SPANLOOM_EVENT_PREFIX: Final = "spanloom."
SPANLOOM_SPAN_PARENT_ID: Final = "spanloom.span.parent_id"
SPANLOOM_SPAN_NAME: Final = "spanloom.span.name"
SPANLOOM_SPAN_KIND: Final = "spanloom.span.kind"
SPANLOOM_SPAN_START: Final = "spanloom.span.start_time_unix_nano"
SPANLOOM_SPAN_SCOPE: Final = "spanloom.span.scope"
SPANLOOM_SPAN_ATTRIBUTES: Final = "spanloom.span.attributes"
SPANLOOM_SPAN_REVISION: Final = "spanloom.span.revision"
"""1 for the first announcement of an open span, one more for each that follows."""
SPANLOOM_PROCESS_ID: Final = "spanloom.process.id"
"""Random; another one with each start and fork of a process."""
SPANLOOM_HEARTBEAT_SEQUENCE: Final = "spanloom.heartbeat.sequence"
"""Number of the heartbeat; on an announcement that of the latest one before it."""
SPANLOOM_HEARTBEAT_OPEN_SPANS: Final = "spanloom.heartbeat.open_spans"
"""Ids of the spans the process has announced that are still open."""
SPANLOOM_HEARTBEAT_UNANNOUNCED: Final = "spanloom.heartbeat.unannounced_spans"
"""How many more spans are open that long; announcements are limited."""
SPANLOOM_HEARTBEAT_LAST: Final = "spanloom.heartbeat.last"
"""True on the heartbeat of a process that ends in order."""
ERROR_TYPE_PROCESS_DIED: Final = "process_died"
ERROR_TYPE_SPAN_LOST: Final = "span_lost"
"""The process went on, or ended in order, but the span's end was never received."""

# --- metrics: OTLP ------------------------------------------------------------------------------
METRIC_INFERENCE_DURATION: Final = "gen_ai.client.inference.duration"
METRIC_INFERENCE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.inference.time_to_first_chunk"
METRIC_INFERENCE_INPUT_TOKENS: Final = "gen_ai.client.inference.usage.input_tokens"
METRIC_INFERENCE_OUTPUT_TOKENS: Final = "gen_ai.client.inference.usage.output_tokens"
METRIC_INFERENCE_CACHE_READ_TOKENS: Final = "gen_ai.client.inference.usage.cache_read.input_tokens"
METRIC_INFERENCE_CACHE_WRITE_TOKENS: Final = (
    "gen_ai.client.inference.usage.cache_write.input_tokens"
)
METRIC_INFERENCE_REASONING_TOKENS: Final = "gen_ai.client.inference.usage.reasoning.output_tokens"
METRIC_INFERENCE_OPERATION_INPUT_TOKENS: Final = "gen_ai.client.inference.operation.input_tokens"
METRIC_INFERENCE_OPERATION_OUTPUT_TOKENS: Final = "gen_ai.client.inference.operation.output_tokens"
METRIC_OPERATION_TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
METRIC_OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
METRIC_TOKEN_USAGE: Final = "gen_ai.client.token.usage"
METRIC_INVOKE_WORKFLOW_DURATION: Final = "gen_ai.invoke_workflow.duration"
METRIC_INVOKE_AGENT_DURATION: Final = "gen_ai.invoke_agent.duration"
METRIC_EXECUTE_TOOL_DURATION: Final = "gen_ai.execute_tool.duration"

OTEL_METRIC_OVERFLOW: Final = "otel.metric.overflow"
METRIC_HTTP_REQUEST_BODY_SIZE: Final = "http.server.request.body.size"
METRIC_HTTP_RESPONSE_BODY_SIZE: Final = "http.server.response.body.size"

# --- metrics: Prometheus ------------------------------------------------------------------------
PROM_REQUESTS: Final = "agent_requests"
PROM_LATENCY_SECONDS: Final = "agent_latency_seconds"
PROM_TOOL_CALLS: Final = "agent_tool_calls"
PROM_TOKENS: Final = "agent_tokens"
PROM_LLM_CALLS: Final = "agent_llm_calls"
STATUS_RATE_LIMIT: Final = "rate_limit"
"""Its status where an outcome of `error` was a provider's "too many requests"."""
PROM_COST_USD: Final = "agent_cost_usd"
PROM_STEP_TOKENS: Final = "agent_step_tokens"
"""Tokens by the innermost graph node and tool that the model was called from."""
PROM_STEP_COST_USD: Final = "agent_step_cost_usd"
PROM_ACTIVE_REQUESTS: Final = "agent_active_requests"
PROM_TELEMETRY_DROPPED: Final = "spanloom_telemetry_dropped"
PROM_OPEN_SPANS: Final = "spanloom_telemetry_open_spans"
PROM_OVERDUE_SPANS: Final = "spanloom_telemetry_overdue_spans"
PROM_OLDEST_OPEN_SPAN: Final = "spanloom_telemetry_oldest_open_span_timestamp_seconds"
"""A time and not an age: a process that hangs goes on being asked how long, and cannot count."""
PROM_SPOOL_WAITING: Final = "spanloom_telemetry_spool_waiting"

# --- logs: top-level keys of a non-OTLP JSON line
LOG_TRACE_ID: Final = "trace_id"
LOG_SPAN_ID: Final = "span_id"
LOG_TRACE_FLAGS: Final = "trace_flags"
