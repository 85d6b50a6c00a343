"""One chat request: its log lines, its span's attributes, its turn in the session, its deadline."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from opentelemetry import trace

from service.agent.graph import Agent, Answer
from service.agent.nodes import Redraft, Token
from service.errors import DeadlineExceededError, as_unavailable
from service.sessions import Sessions, thread_id
from service.settings import Settings
from spanloom.telemetry import Telemetry, deadline, get_logger, semconv

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks what, in which session."""

    text: str
    session_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class ChatService:
    """The agent with its sessions, under the service's rules."""

    agent: Agent
    sessions: Sessions
    settings: Settings
    telemetry: Telemetry

    async def answer(
        self, question: Question, *, endpoint: str, emit: Callable[[Token | Redraft], None]
    ) -> Answer:
        """Answer a question within the deadline.

        Raises DeadlineExceededError when the run was cancelled at its deadline, and
        DependencyUnavailableError when the LLM, retrieval or session memory is down. Cancelling
        this coroutine cancels the run and every request it has under way.
        """
        started = time.perf_counter()
        thread = thread_id(question.user_id, question.session_id)
        user = self.telemetry.user_attribute(question.user_id)
        span = trace.get_current_span()
        span.set_attribute(semconv.SESSION_ID, question.session_id)
        span.set_attribute(semconv.USER_ID, user)
        if thread is not None:
            span.set_attribute(semconv.GEN_AI_CONVERSATION_ID, thread)
        _log.info(
            "chat_request",
            endpoint=endpoint,
            query_len=len(question.text),
            session_id=question.session_id,
            user=user,
        )
        try:
            async with deadline(self.settings.deadline_s) as limit:
                answer = await self._run(question.text, thread, emit)
        except TimeoutError as exc:
            if limit.expired:
                raise DeadlineExceededError(self.settings.deadline_s) from exc
            raise
        except Exception as exc:
            if (unavailable := as_unavailable(exc)) is not None and unavailable is not exc:
                raise unavailable from exc
            raise
        _log.info(
            "chat_response",
            endpoint=endpoint,
            latency_ms=round((time.perf_counter() - started) * 1000),
            answer_len=len(answer.text),
            sources=len(answer.sources),
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
        )
        return answer

    async def _run(
        self, text: str, thread: str | None, emit: Callable[[Token | Redraft], None]
    ) -> Answer:
        async with nullcontext() if thread is None else self.sessions.turn(thread):
            answer = await self.agent.run(text, thread_id=thread, emit=emit)
            if thread is not None:
                await self.sessions.forget_older_checkpoints(thread)
            return answer
