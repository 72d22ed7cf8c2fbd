"""Completion of job ids, asked of the generators while somebody waits for Tab."""

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

_PATIENCE_S = 1.0
_MOST = 50
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_jobs(*states: str) -> Complete:
    """Ids of the newest jobs in these states, with their state as help."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        import asyncio

        from zrelay_shared.errors import ZrelayError

        values = context.params
        try:
            return asyncio.run(_found(values.get("generator"), values.get("profile"), states, incomplete))
        except (ZrelayError, OSError, TimeoutError):  # nobody there is no reason to write into somebody's prompt
            return []

    return complete


async def _found(
    generator: str | None, profile: str | None, states: tuple[str, ...], incomplete: str
) -> list[CompletionItem]:
    import asyncio

    from zrelay_client import _settings
    from zrelay_client._async_client import AsyncClient

    endpoint = _settings.endpoints(_settings.load(profile, {"generator.endpoint": generator})).get("generator")
    if endpoint is None:
        return []
    items: list[CompletionItem] = []
    async with asyncio.timeout(_PATIENCE_S), AsyncClient(generator=endpoint.target) as client:
        async for job in client.jobs.list(states=states):
            if job.job_id.startswith(incomplete):
                items.append(CompletionItem(job.job_id, help=job.state))
            if len(items) == _MOST:
                break
    return items
