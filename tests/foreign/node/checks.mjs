// node checks.mjs --protos DIR --encoder HOST:PORT --generator HOST:PORT [--ca FILE [--cert FILE --key FILE] [--token FILE]]
// Calls the services as tests/foreign/test_node.py needs it, and prints what they answered as one JSON object.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const names = ["protos", "encoder", "generator", "ca", "cert", "key", "token"];
const { values: flags } = parseArgs({ options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });
const files = ["encoder", "generator"].map((name) => `zrelay/v1/${name}.proto`);
const definition = loadSync(files, { includeDirs: [flags.protos], longs: String, enums: String, oneofs: true });
const { EncoderService, GeneratorService } = grpc.loadPackageDefinition(definition).zrelay.v1;

const read = (name) => flags[name] && readFileSync(flags[name]);
const credentials = flags.ca
  ? grpc.credentials.createSsl(read("ca"), read("key"), read("cert"))
  : grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
if (flags.token) metadata.set("authorization", `Bearer ${read("token").toString().trim()}`);
const encoder = new EncoderService(flags.encoder, credentials);
const generator = new GeneratorService(flags.generator, credentials);

const call = (client, method, request, sent = metadata) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + 60_000;
    client[method](request, sent, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });

// The events of a stream, and how it ended. `onEvent` gets each event and the stream.
const follow = (method, request, options = {}, onEvent = () => {}) =>
  new Promise((resolve) => {
    const events = [];
    const stream = generator[method](request, metadata, options);
    stream.on("data", ({ event }) => {
      events.push(event);
      onEvent(event, stream);
    });
    stream.on("error", () => {}); // `status` has it, too
    stream.on("status", ({ code }) => resolve({ events, code }));
  });

const refused = async (work) => {
  try {
    await work;
  } catch ({ code, details, metadata: trailers }) {
    return { code, details, status: trailers.get("grpc-status-details-bin")[0]?.toString("base64") };
  }
  throw new Error("expected a refusal, got a reply");
};

const { results } = await call(encoder, "EncodePrompts", { prompts: [{ text: "a small red circle" }] });
const spec = (sampling) => ({ prompt: { promptEmbeds: results[0].promptEmbeds }, sampling });
const small = { width: 64, height: 64, numInferenceSteps: 2 };
const endless = { width: 512, height: 512, numInferenceSteps: 100 };

const ended = async (jobId) => {
  for (;;) {
    const { job } = await call(generator, "GetJob", { jobId });
    if (job.state !== "JOB_STATE_QUEUED" && job.state !== "JOB_STATE_RUNNING") return job.state;
    await sleep(50);
  }
};

const seeds = {};
for (const seed of ["9007199254740993", "18446744073709551615"]) {
  const { events } = await follow("Generate", { spec: spec({ ...small, seed }) });
  seeds[seed] = [events.find((event) => event.accepted).accepted.seed, events.find((event) => event.image).image.seed];
}

const whole = await follow("Generate", { spec: spec({ ...small, numInferenceSteps: 4 }) });

const cancelled = await follow("Generate", { spec: spec(endless) }, {}, (event, stream) => {
  if (event.progress?.completed > 0) stream.cancel();
});
const cancelledState = await ended(cancelled.events[0].accepted.jobId);

const { job } = await call(generator, "SubmitJob", { requestId: "watched", spec: spec(endless), detached: true });
const watched = await follow("WatchJob", { jobId: job.jobId }, { deadline: Date.now() + 500 });
await call(generator, "CancelJob", { jobId: job.jobId });

console.log(
  JSON.stringify({
    seeds,
    whole: { code: whole.code, events: whole.events.map(({ sequence, event }) => [sequence, event]) },
    cancelled: { code: cancelled.code, state: cancelledState },
    watched: { code: watched.code, first: watched.events[0].event, state: await ended(job.jobId) },
    empty: await refused(call(encoder, "EncodePrompts", { prompts: [{ text: "" }] })),
    unknown: await refused(call(generator, "GetJob", { jobId: "0000000000000000" })),
    anonymous: flags.token ? await refused(call(encoder, "GetInfo", {}, new grpc.Metadata())) : null,
  }),
);
encoder.close();
generator.close();
