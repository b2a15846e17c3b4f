// The official client for Node, as a program uses it. Prints what it saw as one JSON object.
import OpenAI, { toFile } from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const fox = { prompt: "a red fox", size: "128x128", seed: 7 };

async function failureOf(call) {
  try {
    await call();
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { name: error.constructor.name, status, code, param, type, requestID };
  }
  throw new Error("it should have been refused");
}

const drawn = await client.images.generate({ ...fox, n: 2, output_format: "webp", model: "mini" });
const linked = await client.images.generate({ ...fox, response_format: "url" });
const { response } = await client.images.generate(fox).withResponse();

const events = [];
for await (const event of await client.images.generate({ ...fox, stream: true, partial_images: 2 })) {
  events.push({ type: event.type, index: event.partial_image_index, image: event.b64_json });
}

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const source = drawn.data[0].b64_json;
const file = await toFile(Buffer.from(source, "base64"), "fox.webp", { type: "image/webp" });
const hat = { prompt: "a blue bird", size: "128x128", seed: 7, strength: 0.5 };
const edited = await client.images.edit({ ...hat, image: file });
const listed = await client.images.edit({ ...hat, image: [file] });

const editEvents = [];
for await (const event of await client.images.edit({ ...hat, image: file, stream: true, partial_images: 1 })) {
  editEvents.push({ type: event.type, image: event.b64_json });
}

const broken = await toFile(Buffer.from("89504e47", "hex"), "fox.png", { type: "image/png" });

console.log(
  JSON.stringify({
    images: drawn.data.map((datum) => datum.b64_json),
    seeds: drawn.data.map((datum) => datum.seed),
    usage: drawn.usage,
    link: linked.data[0].url,
    requestId: response.headers.get("x-request-id"),
    events,
    models,
    edited: edited.data[0].b64_json,
    listed: listed.data[0].b64_json,
    editUsage: edited.usage,
    editEvents,
    failures: {
      n: await failureOf(() => client.images.generate({ ...fox, n: 99 })),
      model: await failureOf(() => client.images.generate({ ...fox, model: "flux-pro" })),
      image: await failureOf(() => client.images.edit({ image: broken, prompt: "a hat" })),
      images: await failureOf(() => client.images.edit({ image: [file, file], prompt: "a hat" })),
      key: await failureOf(() => client.withOptions({ apiKey: "client3" }).images.generate(fox)),
    },
  }),
);
