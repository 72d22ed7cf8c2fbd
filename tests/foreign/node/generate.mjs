// node generate.mjs --protos DIR --encoder HOST:PORT --generator HOST:PORT [--ca FILE [--cert FILE --key FILE] [--token FILE]] PROMPT FILE
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const names = ["protos", "encoder", "generator", "ca", "cert", "key", "token"];
const { values: flags, positionals: [prompt, file] } = parseArgs({
  options: Object.fromEntries(names.map((name) => [name, { type: "string" }])),
  allowPositionals: true,
});

// `longs: String` keeps 64-bit numbers exact; a JavaScript number has 53 bits.
const files = ["encoder", "generator"].map((name) => `zrelay/v1/${name}.proto`);
const definition = loadSync(files, { includeDirs: [flags.protos], longs: String, enums: String, oneofs: true });
const { EncoderService, GeneratorService } = grpc.loadPackageDefinition(definition).zrelay.v1;

const read = (name) => flags[name] && readFileSync(flags[name]);
const credentials = flags.ca
  ? grpc.credentials.createSsl(read("ca"), read("key"), read("cert"))
  : grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
if (flags.token) metadata.set("authorization", `Bearer ${read("token").toString().trim()}`);

const most = { "grpc.max_receive_message_length": 64 << 20, "grpc.max_send_message_length": 64 << 20 };
const encoder = new EncoderService(flags.encoder, credentials, most);
const generator = new GeneratorService(flags.generator, credentials, most);
const deadline = (seconds) => ({ deadline: Date.now() + 1000 * seconds });
const call = (client, method, request) =>
  new Promise((resolve, reject) => {
    client[method](request, metadata, deadline(60), (error, reply) => (error ? reject(error) : resolve(reply)));
  });

const { limits } = await call(generator, "GetInfo", {});
const options = { textLimit: limits.textLimit };
const { results } = await call(encoder, "EncodePrompts", { prompts: [{ text: prompt }], options });

const spec = { prompt: { promptEmbeds: results[0].promptEmbeds }, sampling: { seed: "18446744073709551615" } };
const events = generator.Generate({ spec }, metadata, deadline(600)); // events.cancel() would cancel the job
for await (const { event } of events) {
  if (event.accepted) console.log(`job ${event.accepted.jobId}`);
  if (event.progress) console.log(`${event.progress.stage}: ${event.progress.completed} of ${event.progress.total}`);
  if (event.image) writeFileSync(file, event.image.data);
  if (event.image) console.log(`seed ${event.image.seed}, ${event.image.width} x ${event.image.height}`);
}
encoder.close();
generator.close();
