// The official client for Node, whose patience ends before the picture is drawn: it asks again.
import OpenAI from "openai";

const [url, key, prompt, timeout] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 3, timeout: Number(timeout) });
const drawn = await client.images.generate({ prompt, size: "128x128" });

console.log(JSON.stringify({ image: drawn.data[0].b64_json }));
