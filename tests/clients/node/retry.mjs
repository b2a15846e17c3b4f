// The official client for Node, whose patience ends before the picture is drawn: it asks again.
import OpenAI from "openai";

const [url, key, prompt, timeout, where] = process.argv.slice(2);
const patience = { timeout: Number(timeout) };
let asked = 0;
const client = new OpenAI({
  baseURL: `${url}/v1`,
  apiKey: key,
  maxRetries: 3,
  ...(where === "client" ? patience : {}),
  fetch: (...words) => {
    asked += 1;
    return fetch(...words);
  },
});
const fox = { prompt, size: "128x128" };
const drawn = await client.images.generate(fox, where === "request" ? patience : {});

console.log(JSON.stringify({ image: drawn.data[0].b64_json, asked }));
