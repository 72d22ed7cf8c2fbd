"""generate_grpclib.py --encoder HOST:PORT --generator HOST:PORT [--ca FILE [--cert FILE --key FILE] [--token FILE]]
PROMPT FILE"""

import argparse
import asyncio
import ssl
from pathlib import Path

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod

from zrelay.v1 import encoder_pb2, generator_pb2, jobs_pb2


def connect(address: str, flags: argparse.Namespace) -> Channel:
    """Returns a channel. It connects with the first call."""
    context = None
    if flags.ca:
        context = ssl.create_default_context(cafile=flags.ca)
        context.set_alpn_protocols(["h2"])
        if flags.cert:
            context.load_cert_chain(flags.cert, flags.key)
    host, _, port = address.rpartition(":")
    return Channel(host.strip("[]"), int(port), ssl=context)


async def main(flags: argparse.Namespace) -> None:
    """Encodes a prompt, generates an image, prints the progress and writes the file."""
    metadata = {"authorization": f"Bearer {Path(flags.token).read_text().strip()}"} if flags.token else {}
    async with connect(flags.encoder, flags) as encoder, connect(flags.generator, flags) as generator:
        get_info = UnaryUnaryMethod(
            generator,
            "/zrelay.v1.GeneratorService/GetInfo",
            generator_pb2.GeneratorServiceGetInfoRequest,
            generator_pb2.GeneratorServiceGetInfoResponse,
        )
        info = await get_info(generator_pb2.GeneratorServiceGetInfoRequest(), metadata=metadata, timeout=60)

        encode = UnaryUnaryMethod(
            encoder,
            "/zrelay.v1.EncoderService/EncodePrompts",
            encoder_pb2.EncodePromptsRequest,
            encoder_pb2.EncodePromptsResponse,
        )
        prompts = encoder_pb2.EncodePromptsRequest(prompts=[encoder_pb2.Prompt(text=flags.prompt)])
        prompts.options.text_limit = info.limits.text_limit
        encoded = await encode(prompts, metadata=metadata, timeout=60)

        request = generator_pb2.GenerateRequest()
        request.spec.prompt.prompt_embeds.CopyFrom(encoded.results[0].prompt_embeds)
        request.spec.sampling.seed = 2**64 - 1
        generate = UnaryStreamMethod(
            generator,
            "/zrelay.v1.GeneratorService/Generate",
            generator_pb2.GenerateRequest,
            generator_pb2.GenerateResponse,
        )
        async with generate.open(metadata=metadata, timeout=600) as stream:  # leaving the block cancels the job
            await stream.send_message(request, end=True)
            async for reply in stream:
                match reply.event.WhichOneof("event"):
                    case "accepted":
                        print("job", reply.event.accepted.job_id)
                    case "progress":
                        progress = reply.event.progress
                        print(f"{jobs_pb2.StageKind.Name(progress.stage)}: {progress.completed} of {progress.total}")
                    case "image":
                        image = reply.event.image
                        Path(flags.file).write_bytes(image.data)
                        print(f"seed {image.seed}, {image.width} x {image.height}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--encoder", "--generator"):
        parser.add_argument(flag, required=True)
    for flag in ("--ca", "--cert", "--key", "--token"):
        parser.add_argument(flag)
    parser.add_argument("prompt")
    parser.add_argument("file")
    asyncio.run(main(parser.parse_args()))
