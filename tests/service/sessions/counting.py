"""A graph that counts its runs in the session memory, in this process or as a process of its own.

    python -m tests.service.sessions.counting THREAD TURNS      counts, prints "done"
    python -m tests.service.sessions.counting THREAD hold       takes the turn, prints "holding",
                                                                and keeps it until it is killed

The memory is the one that DATABASE_URL and AGENT_DATA_DIR name.
"""

import asyncio
import sys
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from service.sessions import Sessions, open_sessions
from service.settings import get_settings


class Counted(TypedDict):
    runs: int
    notes: list[str]


async def count_one(state: Counted) -> Counted:
    await asyncio.sleep(0.002)  # long enough to be overtaken by whoever does not wait
    return {"runs": state["runs"] + 1, "notes": [*state["notes"], "好"]}


def counter(sessions: Sessions) -> Any:
    builder = StateGraph(Counted)
    builder.add_node("count", count_one)
    builder.add_edge(START, "count")
    builder.add_edge("count", END)
    return builder.compile(checkpointer=sessions.checkpointer)


async def run_once(sessions: Sessions, thread: str) -> None:
    """What a request does: take the turn, run on what is remembered, remember, forget the rest."""
    graph = counter(sessions)
    config = {"configurable": {"thread_id": thread}}
    async with sessions.turn(thread):
        known = (await graph.aget_state(config)).values
        await graph.ainvoke(known or {"runs": 0, "notes": []}, config, durability="exit")
        await sessions.forget_older_checkpoints(thread)


async def runs(sessions: Sessions, thread: str) -> int:
    """How often it was counted, as the memory has it."""
    state = await counter(sessions).aget_state({"configurable": {"thread_id": thread}})
    return int(state.values.get("runs", 0))


async def main(thread: str, turns: str) -> None:
    async with open_sessions(get_settings()) as sessions:
        if turns == "hold":
            async with sessions.turn(thread):
                sys.stdout.write("holding\n")
                sys.stdout.flush()
                await asyncio.sleep(600)
        for _ in range(int(turns)):
            await run_once(sessions, thread)
    sys.stdout.write("done\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
