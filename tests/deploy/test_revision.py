"""The image knows the commit it was built from: what a deploy asks the running API for."""

from tests.deploy.dockerfile import environment, stages


def test_the_build_argument_becomes_what_health_tells() -> None:
    told = environment(stages(), "agent", {"PATH": ""}, REVISION="4f5e")

    assert told["AGENT_REVISION"] == "4f5e"
    assert environment(stages(), "agent", {"PATH": ""})["AGENT_REVISION"] == ""
