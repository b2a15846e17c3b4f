// Vercel's AI SDK with its two providers for this API. Prints what it saw as one JSON object.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";

const [url, key] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const openai = createOpenAI({ baseURL, apiKey: key });
const compatible = createOpenAICompatible({ name: "fluxline", baseURL, apiKey: key });
const fox = { prompt: "a red fox", size: "160x96", maxRetries: 0 };

async function drawn(asked) {
  const { images, warnings } = await generateImage({ ...fox, ...asked });
  return { images: images.map(({ base64, mediaType }) => ({ base64, mediaType })), warnings };
}

async function failureOf(asked) {
  try {
    await generateImage({ ...fox, ...asked });
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error;
    const { message, statusCode, isRetryable } = error;
    return { message, statusCode, isRetryable };
  }
  throw new Error("it should have been refused");
}

const source = await drawn({ model: openai.image("mini") });
const images = [Buffer.from(source.images[0].base64, "base64")];
const hat = { images, text: "a blue bird" };
const fluxline = (strength) => ({ fluxline: { seed: 7, strength } });
const broken = Buffer.from("89504e470d0a1a0a", "hex");

console.log(
  JSON.stringify({
    openai: await drawn({ model: openai.image("gpt-image-1"), n: 2 }),
    openaiByName: await drawn({ model: openai.image("mini"), n: 2 }),
    compatible: await drawn({
      model: compatible.imageModel("mini"),
      n: 2,
      providerOptions: { fluxline: { seed: 7, steps: 4, output_format: "webp" } },
    }),
    source: source.images[0].base64,
    edited: {
      openai: await drawn({ model: openai.image("gpt-image-1"), prompt: hat }),
      weakly: await drawn({
        model: compatible.imageModel("mini"),
        prompt: hat,
        providerOptions: fluxline(0.2),
      }),
      strongly: await drawn({
        model: compatible.imageModel("mini"),
        prompt: hat,
        providerOptions: fluxline(0.9),
      }),
    },
    failures: {
      size: await failureOf({ model: openai.image("gpt-image-1"), size: "4096x4096" }),
      model: await failureOf({ model: compatible.imageModel("flux-pro") }),
      image: await failureOf({
        model: compatible.imageModel("mini"),
        prompt: { images: [broken], text: "a hat" },
      }),
      images: await failureOf({
        model: compatible.imageModel("mini"),
        prompt: { images: [...images, ...images], text: "a hat" },
      }),
    },
  }),
);
