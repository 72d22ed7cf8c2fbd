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

    from zrelay_client.client import AsyncClient
    from zrelay_client.settings import Settings

    settings = Settings.load(profile, {"generator.endpoint": generator})
    if "generator" not in settings.texts:
        return []
    items: list[CompletionItem] = []
    client = AsyncClient.from_settings(settings, roles=("generator",))
    async with asyncio.timeout(_PATIENCE_S), client:
        async for job in client.jobs.list(states=states):
            if job.job_id.startswith(incomplete):
                items.append(CompletionItem(job.job_id, help=job.state))
            if len(items) == _MOST:
                break
    return items
