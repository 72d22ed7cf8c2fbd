"""What several generators must have in common."""

from dataclasses import replace
from typing import Any

import pytest

from zrelay_client import AsyncClient, FailedPrecondition
from zrelay_client._pool.generators import require_alike

from .conftest import Services

QUICK: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 1}


async def test_generators_of_another_model_or_other_defaults_are_refused(services: Services) -> None:
    async with AsyncClient(generator=services.generator) as client:
        info = await client.generator_info()
    require_alike([info, info])
    require_alike([info, replace(info, transformer_digest="")])  # it does not say yet
    other = replace(info, transformer_digest="0" * 64, endpoint="box:1")
    duller = replace(info, vae_digest="0" * 64, endpoint="box:1")
    fewer = replace(info, defaults=replace(info.defaults, num_inference_steps=4))
    for strange, name in ((other, "transformer_digest"), (duller, "vae_digest"), (fewer, "defaults")):
        with pytest.raises(FailedPrecondition, match="name only those that serve the same folder") as refused:
            require_alike([info, strange])
        assert (refused.value.reason, refused.value.metadata["field"]) == ("GENERATORS_DIFFER", name)


async def test_one_that_comes_back_with_another_model_gets_no_job(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        generators = client._generators
        result = await client.generate("fox", **QUICK)
        (generator,) = generators
        assert generator.info is not None
        generators._reference = replace(generator.info, transformer_digest="0" * 64)  # as others said before
        assert generators.difference(generator) is not None
        again = await client.generate("fox", **QUICK)  # all that there are agree: the model was changed on purpose
    assert result.images == again.images
