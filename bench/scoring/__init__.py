"""The score card: LangGraph scenarios, run under any tracer, judged by what every tracer can do."""
