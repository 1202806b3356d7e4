/**
 * Print events as they happen, one JSON object a line, and a line of type `gap` where some are missing.
 *
 *     FLX_URL=http://localhost:8000 FLX_TOKEN=$(flx token mint --sub me) \
 *       node --experimental-websocket watch.mjs execution_events [TOPIC...] [--from POS] [--transport sse]
 */
import { parseArgs } from "node:util";
import { Backoff, EventStream } from "./flx-client.mjs";

const options = { from: { type: "string" }, transport: { type: "string" } };
const { values, positionals } = parseArgs({ options, allowPositionals: true });
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const events = new EventStream(process.env.FLX_URL ?? "http://localhost:8000", positionals, {
  token: process.env.FLX_TOKEN,
  start: values.from,
  transport: values.transport ?? "auto",
  attempts: 12, // some fifteen seconds in all
  backoff: new Backoff(400, 3_000),
  onGap: (gap) => say({ type: "gap", ...gap }),
});
process.once("SIGINT", () => events.close());
try {
  for await (const event of events) say(event);
} catch (error) {
  console.error(`${error.code}: ${error.message}`);
  process.exitCode = 1;
}
