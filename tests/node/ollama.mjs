// Ollama's own package: node ollama.mjs URL < pictures.json. Prints what it got, as JSON.
import { readFileSync } from "node:fs";
import { Ollama } from "ollama";

const ollama = new Ollama({ host: process.argv[2] });
const pictures = JSON.parse(readFileSync(0, "utf8")).map((uri) => uri.split(",")[1]);
const user = (content, ...images) => [{ role: "user", content, images }];
const settings = { model: "llava-demo", options: { temperature: 0 } };

const got = {};
got.models = (await ollama.list()).models.map((model) => model.name);
got.capabilities = (await ollama.show({ model: "llava-demo" })).capabilities;
got.image = (await ollama.chat({ ...settings, messages: user("Describe this image.", pictures[0]) })).message.content;
got.images = (await ollama.chat({ ...settings, messages: user("Describe these images.", ...pictures) })).message.content;
got.streamed = "";
for await (const part of await ollama.chat({ ...settings, messages: user("Describe this image.", pictures[0]), stream: true })) {
  got.streamed += part.message.content;
}
const bytes = Uint8Array.from(Buffer.from(pictures[0], "base64"));
got.generated = (await ollama.generate({ ...settings, prompt: "Describe this image.", images: [bytes] })).response;
const format = { type: "object", properties: { color: { enum: ["red"] } }, required: ["color"], additionalProperties: false };
got.form = JSON.parse((await ollama.chat({ ...settings, messages: user("Hello"), format })).message.content);
for await (const part of await ollama.pull({ model: "llava-demo", stream: true })) {
  got.pulled = part.status;
}
try {
  await ollama.chat({ ...settings, model: "other", messages: user("Hello") });
} catch (error) {
  got.error = [error.status_code, error.error];
}
console.log(JSON.stringify(got));
