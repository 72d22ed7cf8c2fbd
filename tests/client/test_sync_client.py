"""The facade: the same methods, waiting; and a client that finds its services by itself."""

import asyncio
import inspect
import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.jobs import ENDLESS, PROMPT, QUICK
from tests.helpers.polling import until
from zrelay_client import Accepted, AsyncClient, Client, Done, Event, InvalidArgument
from zrelay_client.stack.processes import start_mark

from .conftest import Services


def public(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


def test_it_has_every_method_with_the_same_words() -> None:
    assert public(Client) - {"close"} == public(AsyncClient) - {"aclose"}
    for name in public(Client) - {"close"}:
        assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(AsyncClient, name))
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__
    assert inspect.signature(Client.__init__) == inspect.signature(AsyncClient.__init__)


def test_it_paints_and_streams(services: Services, tmp_path: Path) -> None:
    with Client(**services.endpoints) as client:
        result = client.generate(PROMPT, **QUICK)
        kinds = [type(event) for event in client.stream(PROMPT, **QUICK)]
        embeds = client.encode(PROMPT)
        assert client.generate(embeds, **QUICK).images == result.images
        assert (kinds[0], kinds[-1]) == (Accepted, Done)
        with pytest.raises(InvalidArgument):
            client.generate("")
    client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.generate(PROMPT)


async def test_leaving_its_stream_cancels_the_job(services: Services) -> None:
    with Client(**services.endpoints) as client:
        for _ in client.stream(PROMPT, request_id="sync-left", **ENDLESS):
            break
    assert await services.was_cancelled("sync-left")


async def test_closing_it_cancels_streams_that_nobody_reads(services: Services) -> None:
    with Client(**services.endpoints) as client:
        events = client.stream(PROMPT, request_id="sync-closed", **ENDLESS)
        assert isinstance(next(events), Accepted)
    assert await services.was_cancelled("sync-closed")
    events.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["generate", "stream"])
def test_ctrl_c_cancels_the_job(services: Services, how: str) -> None:
    name = f"sync-{how}"

    def interrupt() -> None:
        with Client(generator=services.generator) as other:
            until(lambda: other.generator_info().queue.running, "the job runs", 60.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), Client(**services.endpoints) as client:
        if how == "generate":
            client.generate(PROMPT, request_id=name, **ENDLESS)
        for _ in client.stream(PROMPT, request_id=name, **ENDLESS):
            pass
    assert asyncio.run(services.was_cancelled(name))


def test_waiting_within_a_callback_is_refused(services: Services) -> None:
    with Client(**services.endpoints) as client, pytest.raises(RuntimeError, match="within its own callback"):

        def wait(event: Event) -> None:
            client.cancel("x")

        client.generate(PROMPT, on_event=wait, **ENDLESS)


def stack_of(home: Path, endpoints: Mapping[str, object], started: str | None) -> None:
    """A record as `zrelay up` leaves it, of processes that started then (this one's mark: they run)."""
    process = {"pid": os.getpid(), "started": started}
    services = [{"role": role, "process": process, "endpoint": at, "log": "x"} for role, at in endpoints.items()]
    (home / "state").mkdir(exist_ok=True)
    (home / "state" / "stack.json").write_text(json.dumps({"model": "x", "grace_s": 1.0, "services": services}))


def test_with_nothing_given_it_takes_the_stack_of_up(services: Services, empty_home: Path) -> None:
    stack_of(empty_home, services.endpoints, start_mark(os.getpid()))
    with Client() as client:
        result = client.generate(PROMPT, **QUICK)
        result.images[0].save("circle.png")
    assert Path("circle.png").read_bytes() == result.images[0].data


def test_configuration_wins_over_the_stack_and_flags_over_both(services: Services, empty_home: Path) -> None:
    stack_of(empty_home, {"encoder": "127.0.0.1:1", "generator": "127.0.0.1:1"}, start_mark(os.getpid()))
    encoder, generator = services.encoder, services.generator
    (empty_home / "config.toml").write_text(
        f'default_profile = "here"\n[profile.here.encoder]\nendpoint = "{encoder}"\n'
        f'[profile.here.generator]\nendpoint = "{generator}"\n[profile.away.encoder]\nendpoint = "{encoder}"\n'
    )
    with Client() as client:
        assert client.serving() == {"encoder": True, "generator": True}
    with Client(profile="away", generator=generator) as client:
        assert client.serving() == {"encoder": True, "generator": True}
    with pytest.raises(InvalidArgument, match="no profile 'none'"):
        Client(profile="none")


def test_with_nothing_anywhere_it_says_what_to_do(empty_home: Path) -> None:
    stack_of(empty_home, {"encoder": "127.0.0.1:1", "generator": "127.0.0.1:1"}, "before the reboot")
    with Client() as client, pytest.raises(InvalidArgument, match="zrelay up --detach") as missing:
        client.generate(PROMPT)
    assert missing.value.reason == "ENDPOINT_MISSING"
    with (
        Client(generator="127.0.0.1:1") as client,
        pytest.raises(InvalidArgument, match="encoder: this client has no endpoint"),
    ):
        client.encode(PROMPT)
