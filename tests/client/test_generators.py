"""What several generators must have in common."""

from dataclasses import replace

import pytest

from tests.helpers.jobs import QUICK
from tests.helpers.links import linked
from zrelay_client import AsyncClient, FailedPrecondition
from zrelay_client._pool.generators import Generators, require_alike
from zrelay_client._transport.deadline import Budget
from zrelay_client._transport.endpoint import Endpoint

from .conftest import Services


async def test_generators_of_another_model_or_other_defaults_are_refused(services: Services) -> None:
    async with AsyncClient(generator=services.generator) as client:
        info = await client.generator_info()
    require_alike([info, info])
    require_alike([info, replace(info, transformer_digest="")])  # it does not say yet
    other = replace(info, transformer_digest="0" * 64, endpoint="box:1")
    duller = replace(info, vae_digest="0" * 64, endpoint="box:1")
    fewer = replace(info, defaults=replace(info.defaults, num_inference_steps=4))
    slower = replace(info, configuration_digest="0" * 64, endpoint="box:1")
    require_alike([info, replace(slower, configuration_digest="")])  # an earlier release does not say it
    cases = (
        (other, "transformer_digest"),
        (duller, "vae_digest"),
        (slower, "configuration_digest"),
        (fewer, "defaults"),
    )
    for strange, name in cases:
        with pytest.raises(FailedPrecondition, match="name only those that serve the same folder") as refused:
            require_alike([info, strange])
        assert (refused.value.reason, refused.value.metadata["field"]) == ("GENERATORS_DIFFER", name)


async def test_one_that_comes_back_with_another_model_gets_no_job(services: Services) -> None:
    generators = Generators([Endpoint.parse("generator", services.generator)])
    await generators.connect(Budget(60.0))
    (generator,) = generators
    assert generator.info is not None and generators.difference(generator) is None
    generator.info = replace(generator.info, transformer_digest="0" * 64)
    assert generators.difference(generator) is not None
    await generators.close()


async def test_all_generators_may_be_given_another_model(services: Services, omni: str) -> None:
    async with (
        linked(services.generator) as link,
        AsyncClient(encoder=services.encoder, generator=link.endpoint) as client,
    ):
        before = await client.generator_info()
        assert (await client.generate("fox", **QUICK)).images
        await link.cut()
        link.target = omni
        await link.restore()
        assert (await client.generate("fox", **QUICK)).images
        assert (await client.generator_info()).transformer_digest != before.transformer_digest
