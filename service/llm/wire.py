"""OpenAI's chat-completions protocol: requests checked, answers and errors in its shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.llm.offline_model import Request
from service.llm.tool_choice import Tool

SYSTEM_FINGERPRINT: Final = "fp_offline_extractive"

_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Part):
    """A part of a message's content; other kinds than text have no meaning here."""

    type: Literal["text"]
    text: str


class FunctionCall(_Part):
    """What an assistant message called."""

    name: str
    arguments: str


class ToolCall(_Part):
    """A call in an assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Part):
    """One message; which fields make sense depends on the role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None


class Function(_Part):
    """A function on offer."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Part):
    """A tool on offer; functions are the only kind."""

    type: Literal["function"]
    function: Function


class FunctionName(_Part):
    """Which function is meant."""

    name: str


class NamedToolChoice(_Part):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(_Part):
    """The schema an answer must fit."""

    name: _Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """Plain text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Part):
    """What a stream carries besides its text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(_Part):
    """Body of `POST /v1/chat/completions`.

    Sampling parameters are checked and then have no effect: the model does not sample.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    n: int | None = None

    # Accepted without effect.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def stop_sequences(self) -> list[str]:
        """Texts at which the reply ends, empty ones left out."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def wants_usage_chunk(self) -> bool:
        """Does the stream end with a chunk of token counts?"""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wire_messages(self) -> list[dict[str, Any]]:
        """Messages as plain data."""
        return [message.model_dump(exclude_none=True) for message in self.messages]

    @property
    def wire_tools(self) -> list[dict[str, Any]]:
        """Tools as plain data."""
        return [tool.model_dump(exclude_none=True) for tool in self.tools or ()]

    @property
    def wire_format(self) -> dict[str, Any] | None:
        """The schema that was asked for, as plain data."""
        if self.response_format is None or self.response_format.json_schema is None:
            return None
        return self.response_format.json_schema.schema_

    def to_model(self) -> Request:
        """What the model is asked."""
        choice = self.tool_choice or "auto"
        return Request(
            messages=self.wire_messages,
            tools=[
                Tool(
                    tool.function.name,
                    tool.function.description or "",
                    tool.function.parameters or {},
                )
                for tool in self.tools or ()
            ],
            tool_choice=choice if isinstance(choice, str) else choice.function.name,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_schema=self.wire_format,
            json_object=self.response_format is not None
            and self.response_format.type == "json_object",
        )


class ApiError(Exception):
    """An answer of OpenAI's error shape."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one exchange."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's `usage`; there is no cache, no reasoning and no audio."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def read_request(payload: object) -> ChatRequest:
    """Check a decoded JSON body.

    Raises:
        ApiError: 400, naming the parameter that is wrong.
    """
    if not isinstance(payload, dict):
        raise ApiError("The request body must be a JSON object.")
    try:
        request = ChatRequest.model_validate(payload)
    except ValidationError as error:
        raise _of_validation(error) from None
    _check_together(request)
    return request


def _of_validation(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = _path(first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return ApiError(
            f"Unrecognized request argument supplied: {path}", code="unknown_parameter", param=path
        )
    if first["type"] == "missing":
        return ApiError(
            f"Missing required parameter: '{path}'.",
            code="missing_required_parameter",
            param=path,
        )
    return ApiError(f"Invalid '{path}': {first['msg']}.", code="invalid_value", param=path)


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        # Names of union members are pydantic's, not the caller's.
        elif step.islower() and "[" not in step and step not in ("str", "list"):
            path += f".{step}" if path else step
    return path


def _check_together(request: ChatRequest) -> None:
    """What one field alone cannot tell."""
    if request.n not in (None, 1):
        raise ApiError("Only n=1 is supported.", param="n", code="unsupported_value")
    if request.stream_options is not None and not request.stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    offered = {tool.function.name for tool in request.tools or ()}
    if request.tool_choice not in (None, "none", "auto") and not offered:
        raise ApiError(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are "
            "specified.",
            param="tool_choice",
        )
    choice = request.tool_choice
    if isinstance(choice, NamedToolChoice) and choice.function.name not in offered:
        raise ApiError(
            f"Invalid value for 'tool_choice': no function named '{choice.function.name}' was "
            "specified in the 'tools' parameter.",
            param="tool_choice",
        )
    wanted = request.response_format
    if wanted is not None and (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise ApiError(
            "'response_format.json_schema' goes with type 'json_schema', and only with it.",
            param="response_format",
        )
    _check_messages(request.messages)


def _check_messages(messages: Sequence[Message]) -> None:
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise ApiError(
                    "Messages with role 'tool' must be a response to a preceding message with "
                    "'tool_calls'.",
                    param=f"{where}.role",
                )
            open_calls.discard(message.tool_call_id)
            continue
        if open_calls:
            raise ApiError(
                "An assistant message with 'tool_calls' must be followed by tool messages "
                f"responding to each 'tool_call_id': {', '.join(sorted(open_calls))} has none.",
                param=where,
            )
        if message.role == "assistant" and message.tool_calls:
            open_calls = {call.id for call in message.tool_calls}
        elif message.content is None:
            raise ApiError(
                f"Invalid value for 'content' of '{where}': expected a string, got null.",
                param=f"{where}.content",
            )
    if open_calls:
        raise ApiError(
            "An assistant message with 'tool_calls' must be followed by tool messages "
            f"responding to each 'tool_call_id': {', '.join(sorted(open_calls))} has none.",
            param="messages",
        )


def message_body(text: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The assistant message of a completion; `content` is null beside tool calls."""
    body: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls else text,
        "refusal": None,
        "annotations": [],
    }
    return {**body, "tool_calls": list(calls)} if calls else body
