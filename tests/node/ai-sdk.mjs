// Vercel's AI SDK, which streaming chat pages are built with: node ai-sdk.mjs BASE_URL < pictures.json. Prints what it got, as JSON.
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const gateway = createOpenAICompatible({ name: "gateway", baseURL: process.argv[2], includeUsage: true, supportsStructuredOutputs: true });
const model = gateway("llava-demo");
const pictures = JSON.parse(readFileSync(0, "utf8"));
const user = (text, ...images) => [{ role: "user", content: [...images.map((image) => ({ type: "image", image })), { type: "text", text }] }];
const settings = { model, temperature: 0, maxRetries: 0 };

const got = {};
got.text = (await generateText({ ...settings, prompt: "Hello" })).text;
got.image = (await generateText({ ...settings, messages: user("Describe this image.", pictures[0]) })).text;
const stream = streamText({ ...settings, messages: user("Describe these images.", ...pictures) });
got.deltas = 0;
got.images = "";
for await (const delta of stream.textStream) {
  got.deltas += 1;
  got.images += delta;
}
got.finishReason = await stream.finishReason;
got.usage = await stream.usage;
const schema = z.object({ color: z.enum(["red", "blue"]) });
got.object = (await generateObject({ ...settings, schema, prompt: "Hello" })).object;
try {
  await generateText({ ...settings, prompt: "Hello", model: gateway("other") });
} catch (error) {
  got.error = [error.statusCode, error.message];
}
console.log(JSON.stringify(got));
