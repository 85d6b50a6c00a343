"""deploy/deploy and deploy/rollback on a host of local processes (see host.py)."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.host import Host, fake_host, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the host's side needs Linux")

GATE_S = 20
"""For releases that will not pass it. A good one is in service in less, also on a busy machine."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with fake_host(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which nothing was ever done, nor will be."""
    with fake_host(tmp_path_factory.mktemp("untouched")) as running:
        running.release()
        yield running


def said(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout}\n--- stderr\n{done.stderr}"


def deployed(host: Host, **how: str) -> str:
    """A release that is in service."""
    tag = host.release(**how)
    done = host.run("deploy", tag)
    assert done.returncode == 0, said(done)
    return tag


def killed_at(
    host: Host, command: str, script: str, *arguments: str, gate: int = 60
) -> subprocess.CompletedProcess[str]:
    """A script that is killed as it calls that command of docker compose, which outlives it."""
    (host.docker / "cut").write_text(command)
    done = host.run(script, *arguments, gate=gate)
    host.wait_for_clients()
    return done


def test_a_good_release_goes_into_service_with_its_configuration(host: Host) -> None:
    first = deployed(host)
    second = host.release()
    (host.checkout / "otel-collector.yaml").write_text("# not committed\n")

    done = host.run("deploy", second)

    assert done.returncode == 0, said(done)
    assert f"{second} is in service" in done.stdout
    assert host.good == [first, second]
    assert host.running == second
    assert not host.in_progress
    for tag in (first, second):
        sent = (host.dir / "releases" / tag / "otel-collector.yaml").read_text()
        assert sent == host.git("show", f"{tag}:otel-collector.yaml") + "\n"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("unhealthy", "not every container became healthy"),
        ("never", "not every container became healthy"),
        ("not-ready", "/ready: curl: (22)"),
        ("crash", "did not pass the health gate"),
    ],
)
def test_a_bad_release_is_rolled_back_by_itself(host: Host, fault: str, why: str) -> None:
    good = deployed(host)
    bad = host.release(fault)

    done = host.run("deploy", bad, gate=GATE_S)

    assert done.returncode == 1, said(done)
    assert why in said(done)
    assert f"{bad} failed: going back to {good}" in done.stdout
    assert f"{good} is in service again" in done.stdout
    assert f"{bad} {fault}:" in done.stderr or fault == "never", "the log of the bad release"
    assert host.good == [good]
    assert host.running == good
    assert not host.in_progress


def test_an_image_of_another_commit_does_not_pass(host: Host) -> None:
    """An API that answers is not enough: it must be the one that was asked for."""
    good = deployed(host)
    bad = host.release(revision="another")

    done = host.run("deploy", bad, gate=GATE_S)

    assert done.returncode == 1, said(done)
    assert f"/health names the commit another instead of {bad}" in done.stdout
    assert host.running == good


def test_a_slow_release_is_waited_for(host: Host) -> None:
    deployed(host)
    slow = deployed(host, fault="slow")

    assert host.running == slow


def test_a_first_release_that_fails_is_stopped(host: Host) -> None:
    bad = host.release("unhealthy")

    done = host.run("deploy", bad, gate=GATE_S)

    assert done.returncode == 3, said(done)
    assert "there is no good release to go back to" in done.stdout
    assert host.running is None
    assert host.good == []


def test_an_image_that_cannot_be_pulled_changes_nothing(host: Host) -> None:
    good = deployed(host)
    missing = host.release(pushed=False)

    done = host.run("deploy", missing)

    assert done.returncode == 1, said(done)
    assert "were not pulled; nothing was changed" in done.stdout
    assert "manifest unknown" in done.stderr
    assert [call for call in host.calls if call.endswith(" up")] == [f"{good} up"]
    assert not host.in_progress


def test_going_back_by_hand(host: Host) -> None:
    """One release at a time, or to a named one; never forward again, and without a registry."""
    first, second, third = (deployed(host) for _ in range(3))
    for image in (host.docker / "registry").iterdir():
        image.unlink()

    back = host.run("rollback")
    status = host.run("rollback", "--status")
    assert (back.returncode, host.running, host.good) == (0, second, [first, second]), said(back)
    assert f"rolling back from {third} to {second}" in back.stdout
    assert f"in service: {second}\n" in status.stdout

    host.run("rollback")
    assert (host.running, host.good) == (first, [first])

    none = host.run("rollback")
    assert none.returncode == 2
    assert "there is no earlier good release" in none.stderr
    assert host.running == first


def test_going_back_to_a_named_release(host: Host) -> None:
    first, _, _ = (deployed(host) for _ in range(3))
    never = host.release()

    back = host.run("rollback", first)
    unknown = host.run("rollback", never)

    assert (back.returncode, host.running, host.good) == (0, first, [first]), said(back)
    assert unknown.returncode == 2
    assert f"{never} was never in service here; good releases: {first}" in unknown.stderr


def test_a_rollback_that_fails_leaves_what_was_in_service(host: Host) -> None:
    first, second = deployed(host), deployed(host)
    broken = host.docker / "images" / f"{first}.json"
    broken.write_text(broken.read_text().replace('"none"', '"unhealthy"'))

    done = host.run("rollback", gate=GATE_S)

    assert done.returncode == 1, said(done)
    assert host.running == second
    assert host.good == [first, second]


# Interruptions.


@pytest.mark.parametrize("command", ["pull", "up"])
def test_a_killed_deploy_is_healed_by_going_back(host: Host, command: str) -> None:
    good = deployed(host)
    lost = host.release("unhealthy")

    killed = killed_at(host, command, "deploy", lost)

    assert killed.returncode not in {0, 1, 2, 3, 4}, said(killed)
    assert host.in_progress
    assert host.good == [good]
    assert f"interrupted or under way: activate {lost}" in host.run("rollback", "--status").stdout

    healed = host.run("rollback")

    assert healed.returncode == 0, said(healed)
    assert f"an earlier deploy was interrupted on its way to {lost}" in healed.stdout
    assert (host.running, host.good, host.in_progress) == (good, [good], False)


def test_a_killed_deploy_is_healed_by_the_next_one(host: Host) -> None:
    good = deployed(host)
    killed_at(host, "up", "deploy", host.release("unhealthy"))

    following = deployed(host)

    assert (host.running, host.good, host.in_progress) == (following, [good, following], False)


def test_a_killed_deploy_is_healed_by_one_that_cannot_even_be_pulled(host: Host) -> None:
    """`nothing was changed` would be a lie: what the killed one left is not the good release."""
    good = deployed(host)
    bad = host.release("not-ready")
    start = host.start("deploy", bad)
    wait_until(lambda: host.running == bad, "the bad release runs")
    host.kill_script()
    start.communicate()
    host.wait_for_clients()
    assert host.running == bad

    done = host.run("deploy", host.release(pushed=False))

    assert done.returncode == 1, said(done)
    assert (host.running, host.good, host.in_progress) == (good, [good], False)


def test_what_a_killed_deploy_left_at_work_is_waited_for(host: Host) -> None:
    """Compose outlives the script that called it: nobody begins before it has ended."""
    good = deployed(host)
    bad = host.release("never")
    deploy = host.start("deploy", bad, gate=20)
    wait_until(lambda: host.running == bad, "compose waits for the bad release")
    host.kill_script()
    deploy.communicate()

    tries = [host.run("rollback")]
    while tries[-1].returncode == 4:
        tries.append(host.run("rollback"))

    assert len(tries) > 1, said(tries[0])
    assert tries[-1].returncode == 0, said(tries[-1])
    assert (host.running, host.good, host.in_progress) == (good, [good], False)


def test_a_killed_restoration_is_healed(host: Host) -> None:
    """Killed a second time, while it goes back."""
    good = deployed(host)
    bad = host.release("unhealthy")
    killed_at(host, "logs", "deploy", bad, gate=GATE_S)
    assert host.running == bad

    healed = host.run("rollback")

    assert healed.returncode == 0, said(healed)
    assert (host.running, host.good, host.in_progress) == (good, [good], False)


def test_a_killed_rollback_is_finished_by_the_next(host: Host) -> None:
    """Not turned round: whoever began it wanted to leave the newer release."""
    first, second = deployed(host), deployed(host)
    killed_at(host, "up", "rollback")
    assert host.good == [first, second]

    done = host.run("rollback")

    assert done.returncode == 0, said(done)
    assert (host.running, host.good, host.in_progress) == (first, [first], False)


@pytest.mark.parametrize("fault", ["never", "not-ready"])
def test_a_deploy_that_is_told_to_stop_goes_back_at_once(host: Host, fault: str) -> None:
    """From compose, which has ended before the good release is put back, and from the gate."""
    good = deployed(host)
    bad = host.release(fault)
    deploy = host.start("deploy", bad, gate=600)
    wait_until(lambda: host.running == bad, "the new release runs")
    if fault == "not-ready":
        wait_until(lambda: not host.clients(), "the gate is reached")

    script = host.script()
    assert script is not None
    os.kill(script, signal.SIGTERM)
    out, err = deploy.communicate(timeout=80)

    assert deploy.returncode == 1, out + err
    assert "it was interrupted" in out
    assert (host.running, host.good, host.in_progress) == (good, [good], False)
    assert host.clients() == []


@pytest.mark.parametrize("fault", ["slow", "not-ready"])
def test_a_connection_that_breaks_leaves_nothing_half_done(host: Host, fault: str) -> None:
    """The host goes on alone: into service, or back."""
    good = deployed(host)
    new = host.release(fault)
    deploy = host.start("deploy", new, gate=60 if fault == "slow" else GATE_S)
    wait_until(lambda: host.running == new, "the new release runs")

    os.killpg(deploy.pid, signal.SIGKILL)
    deploy.communicate()
    wait_until(lambda: not host.in_progress, "the host has ended it alone")

    expected = [good, new] if fault == "slow" else [good]
    assert host.good == expected
    assert host.running == expected[-1]
    wait_until(lambda: host.script() is None, "the script has ended")


def test_one_deploy_at_a_time(host: Host) -> None:
    good = deployed(host)
    endless = host.release("not-ready")
    other = host.release()
    first = host.start("deploy", endless, gate=600)
    wait_until(lambda: host.running == endless, "the first deploy is under way")

    second = host.run("deploy", other)
    back = host.run("rollback")

    for refused in (second, back):
        assert refused.returncode == 4, said(refused)
        assert "another deploy is under way on this host" in refused.stderr
    script = host.script()
    assert script is not None
    os.kill(script, signal.SIGTERM)
    out, err = first.communicate(timeout=80)
    assert first.returncode == 1, out + err
    assert host.running == good


# What is kept, and what is refused.


def test_a_full_disk_stops_a_deploy_before_it_changes_anything(host: Host) -> None:
    good = deployed(host)
    (host.dir / "state" / "in-progress.new").symlink_to("/dev/full")

    done = host.run("deploy", host.release())

    assert done.returncode == 1, said(done)
    assert "is the disk full?): nothing was changed" in done.stderr
    assert [call for call in host.calls if call.endswith(" up")] == [f"{good} up"]
    assert host.good == [good]


def test_a_disk_that_fills_up_meanwhile_leaves_the_record_whole(host: Host) -> None:
    good = deployed(host)
    (host.dir / "state" / "good.new").symlink_to("/dev/full")
    new = host.release()

    done = host.run("deploy", new)
    assert done.returncode == 1, said(done)
    assert f"{new} is in service and healthy" in done.stderr
    assert (host.running, host.good) == (new, [good])

    (host.dir / "state" / "good.new").unlink()
    again = host.run("deploy", new)
    assert again.returncode == 0, said(again)
    assert host.good == [good, new]


def test_five_releases_and_every_image_are_kept(host: Host) -> None:
    tags = [deployed(host)]
    releases = host.dir / "releases"
    for number in range(5):  # as an earlier year left them: a minute for each would be too long
        tags.insert(-1, f"v{number}")
        shutil.copytree(releases / tags[-1], releases / tags[-2])
        os.utime(releases / tags[-2], (0, 0))
    (host.dir / "state" / "good").write_text("\n".join(tags) + "\n")

    tags.append(deployed(host))

    assert host.good == tags[-5:]
    assert sorted(file.name for file in releases.iterdir()) == sorted(tags[-5:])
    assert {file.stem for file in (host.docker / "images").iterdir()} == {tags[-2], tags[-1]}


def test_a_tag_stays_the_commit_it_was(host: Host) -> None:
    first = host.release()
    host.push("stable", [sys.executable, "-c", ""])
    host.run("deploy", "--commit", first, "stable", gate=GATE_S)

    done = host.run("deploy", "--commit", host.release(), "stable")

    assert done.returncode == 2
    assert f"on this host stable is another commit: {first}" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("deploy", (), "deploy/deploy --host USER@HOST"),
        ("deploy", ("--status",), "deploy/deploy --host USER@HOST"),
        ("deploy", ("a;reboot",), "'a;reboot' is no image tag"),
        ("deploy", ("no-such-commit",), "this checkout has no commit no-such-commit"),
        ("deploy", ("--commit", "--all", "tag"), "this checkout has no commit --all"),
        ("rollback", ("a", "b"), "deploy/rollback --host USER@HOST"),
        ("rollback", ("--dir", "/srv/a'b"), "--dir takes an absolute path"),
        ("rollback", ("--gate", "soon"), "--gate takes whole seconds"),
        ("rollback", ("--host", "-oProxyCommand=x"), "is no host"),
        ("rollback", ("--commit", "x"), "deploy/rollback --host USER@HOST"),
    ],
)
def test_wrong_use_gets_a_sentence_and_touches_nothing(
    untouched: Host, script: str, arguments: tuple[str, ...], sentence: str
) -> None:
    done = untouched.run(script, *arguments)

    assert done.returncode == 2, said(done)
    assert sentence in done.stderr
    assert [file.name for file in untouched.dir.iterdir()] == [".env"]


def test_a_host_without_settings_gets_a_sentence(host: Host) -> None:
    (host.dir / ".env").unlink()

    done = host.run("deploy", host.release())

    assert done.returncode == 2, said(done)
    assert "copy .env.example there" in done.stderr


def test_a_host_that_cannot_be_reached_gets_a_sentence(host: Host) -> None:
    host.ssh = "ssh -F /dev/null -p 1 -o HostName=127.0.0.1"

    done = host.run("rollback")

    assert done.returncode == 255, said(done)
    assert "the connection to fake-host failed" in done.stderr
