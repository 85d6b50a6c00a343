"""The chat page, a Streamlit script; `python -m service.chat_page` runs it.

Streamlit runs it from top to bottom for every visitor and at every click; what lasts is in
`st.session_state`.
"""

from contextlib import closing, suppress
from typing import TYPE_CHECKING

import streamlit as st

from service.chat_page.client import ChatClient
from service.chat_page.conversation import Conversation, Turn, caption, harmless, trace_link
from service.errors import UnansweredError
from service.settings import Settings, get_settings
from spanloom.telemetry import semconv, step

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

_MOST_TEXT = 2000


def _conversation() -> Conversation:
    if "conversation" not in st.session_state:
        st.session_state.conversation = Conversation()
    conversation: Conversation = st.session_state.conversation
    return conversation


def _sidebar(conversation: Conversation, settings: Settings) -> None:
    with st.sidebar:
        conversation.session_id = st.text_input(
            "Session",
            conversation.session_id,
            help="Questions under the same id are one conversation, also on another day.",
        )
        if st.button("New conversation"):
            del st.session_state.conversation
            st.rerun()
        st.caption(f"Answers come from {settings.chat_api_base_url}.")


def _show(turn: Turn, settings: Settings) -> None:
    with st.chat_message("user"):
        st.text(turn.question)
    with st.chat_message("assistant"):
        _show_outcome(turn, st.empty(), settings)


def _show_outcome(turn: Turn, place: "DeltaGenerator", settings: Settings) -> None:
    """Draw the answer, or as much as there is of it, and how it ended."""
    place.markdown(harmless(turn.text))
    link = trace_link(turn.trace_id, settings.chat_trace_url)
    if turn.answer is not None:
        if turn.answer.sources:
            with st.expander(f"Sources ({len(turn.answer.sources)})"):
                for source in turn.answer.sources:
                    st.text(source)
        st.caption(" · ".join(part for part in (caption(turn.answer), link) if part))
    elif turn.failure is not None:
        st.error("\n\n".join(part for part in (turn.failure.reason, link) if part))
    else:
        st.caption(" · ".join(part for part in ("stopped", link) if part))


def _ask(turn: Turn, conversation: Conversation, settings: Settings) -> None:
    """Ask the service and draw its answer as it grows."""
    with st.chat_message("user"):
        st.text(turn.question)
    with st.chat_message("assistant"):
        place = st.empty()
        waiting = st.empty()
        waiting.caption("…")
        session_id = conversation.session_id
        client = ChatClient(settings.chat_api_base_url, settings.chat_patience_s)
        with (
            suppress(UnansweredError),
            step("ask", **{semconv.SESSION_ID: session_id}),
            closing(client.ask(turn.question, session_id=session_id)) as events,
        ):
            for event in events:
                turn.take(event)
                place.markdown(harmless(turn.text))
                # Who waits too long can look at what it waits for.
                waiting.caption(trace_link(turn.trace_id, settings.chat_trace_url) or "…")
            if turn.failure is not None:
                raise UnansweredError(turn.failure.reason)
        waiting.empty()
        _show_outcome(turn, place, settings)


def _page() -> None:
    st.set_page_config(page_title="Spanloom chat", page_icon="🧵")
    st.title("Ask the agent")
    settings = get_settings()
    conversation = _conversation()
    _sidebar(conversation, settings)
    for turn in conversation.turns:
        _show(turn, settings)
    question = st.chat_input("What is a KV cache?", max_chars=_MOST_TEXT)
    if question:
        turn = Turn(question)
        conversation.turns.append(turn)
        _ask(turn, conversation, settings)


_page()
