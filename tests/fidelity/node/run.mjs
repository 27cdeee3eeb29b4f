// Asks with the official Node client what stdin says, and prints what the application observes.
//
// stdin: {"routes": {name: base URL}, "calls": [{"way", "body", "script"}], "labels": [...]}
// stdout: {route name: [{"seen" or "failed", "decision"}, ...]} in the order of the calls.

import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const given = JSON.parse(await new Response(process.stdin).text());

const Intent = z.strictObject({ intent: z.enum(given.labels) });
const Ticket = z.strictObject({ intent: z.enum(given.labels), polite: z.boolean(), source: z.literal("chat") });
const schemas = { Intent, Ticket };

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const ways = {
  create: (client, body) => client.chat.completions.create(body),
  raw: async (client, body) => {
    const { data, response, request_id } = await client.chat.completions.create(body).withResponse();
    return { data, status: response.status, type: response.headers.get("content-type"), request: request_id };
  },
  stream: async (client, body) => all(await client.chat.completions.create({ ...body, stream: true })),
  usage: async (client, body) =>
    all(await client.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } })),
  helper: async (client, body) => {
    const stream = client.chat.completions.stream(body);
    const kinds = [];
    for (const kind of ["content.done", "tool_calls.function.arguments.done", "finalContent", "end"])
      stream.on(kind, () => kinds.push(kind));
    const final = await stream.finalChatCompletion();
    return { kinds, final, message: await stream.finalMessage() };
  },
  parse: async (client, { schema, ...body }) =>
    client.chat.completions.parse({ ...body, response_format: zodResponseFormat(schemas[schema], schema) }),
  response: (client, body) => client.responses.create(body),
  response_stream: async (client, body) => all(await client.responses.create({ ...body, stream: true })),
  response_helper: async (client, body) => {
    const stream = client.responses.stream(body);
    return { events: await all(stream), final: await stream.finalResponse() };
  },
  response_parse: async (client, { schema, ...body }) =>
    client.responses.parse({ ...body, text: { format: zodTextFormat(schemas[schema], schema) } }),
  models: async (client) => all(client.models.list()),
  embeddings: (client, body) => client.embeddings.create(body),
  file: async (client) => {
    const content = Buffer.alloc(70000, "é\r\n--x");
    const file = await client.files.create({ file: await toFile(content, "a b.bin"), purpose: "batch" });
    const back = Buffer.from(await (await client.files.content(file.id)).arrayBuffer());
    return { file, same: back.equals(content) };
  },
};

function failure(error) {
  const { status, code, param, type, message } = error;
  const retry = error.headers?.get?.("retry-after") ?? null;
  return { class: error.constructor.name, status, code, param, type, message, retry, request: error.requestID ?? null };
}

async function ask(baseURL, { way, body, script }) {
  let decision = null;
  const noting = async (...request) => {
    const answer = await fetch(...request);
    decision = answer.headers.get("x-tracer-decision");
    return answer;
  };
  const defaultHeaders = { "x-script": script ?? "openai" };
  const client = new OpenAI({ baseURL, apiKey: "sk-application", maxRetries: 0, fetch: noting, defaultHeaders });
  try {
    return { seen: await ways[way](client, body), decision };
  } catch (error) {
    return { failed: failure(error), decision };
  }
}

const found = {};
for (const [name, baseURL] of Object.entries(given.routes)) {
  found[name] = [];
  for (const call of given.calls) found[name].push(await ask(baseURL, call));
}
console.log(JSON.stringify(found));
