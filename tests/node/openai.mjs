// OpenAI's SDK for JavaScript against the gateway: node openai.mjs BASE_URL < pictures.json. Prints what it got, as JSON.
import { readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const pictures = JSON.parse(readFileSync(0, "utf8"));
const model = "llava-demo";

const user = (text, ...urls) => ({
  role: "user",
  content: [...urls.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text }],
});
const ask = (fields) => ({ model, temperature: 0, ...fields });
const say = (completion) => completion.choices[0].message.content;

const got = {};
got.models = (await client.models.list()).data.map((model) => model.id);
got.text = say(await client.chat.completions.create(ask({ messages: [user("Hello")] })));
got.image = say(await client.chat.completions.create(ask({ messages: [user("Describe this image.", pictures[0])] })));
const two = await client.chat.completions.create(ask({ messages: [user("Describe these images.", ...pictures)] }));
got.images = say(two);
got.imageTokens = two.usage.prompt_tokens_details.image_tokens;

const options = { messages: [user("Describe this image.", pictures[0])], stream: true, stream_options: { include_usage: true } };
got.streamed = "";
for await (const chunk of await client.chat.completions.create(ask(options))) {
  got.streamed += chunk.choices[0]?.delta.content ?? "";
  got.streamedUsage = chunk.usage ?? got.streamedUsage;
}

const helper = client.chat.completions.stream(ask({ messages: [user("Hello")], n: 2, temperature: 1, seed: 1, logprobs: true }));
const final = await helper.finalChatCompletion();
got.helper = final.choices.map((choice) => [choice.index, choice.message.role, choice.finish_reason, choice.logprobs.content.length > 0]);

const Answer = z.object({ color: z.enum(["red", "blue"]), count: z.number().int().min(0).max(9) });
const parsed = await client.chat.completions.parse(ask({ messages: [user("Hello")], response_format: zodResponseFormat(Answer, "answer") }));
got.parsed = Answer.safeParse(parsed.choices[0].message.parsed).success;

got.completion = (await client.completions.create({ model, prompt: "USER: Hello ASSISTANT:", temperature: 0, max_tokens: 4 })).choices[0].text;

const picture = [{ type: "input_image", detail: "auto", image_url: pictures[0] }];
const first = await client.responses.create(ask({ input: [{ role: "user", content: picture }] }));
const events = client.responses.stream(ask({ input: "Describe this image.", previous_response_id: first.id }));
got.response = (await events.finalResponse()).output_text;
const form = { type: "json_schema", name: "answer", schema: { type: "object", properties: { color: { enum: ["red"] } }, required: ["color"] } };
got.form = (await client.responses.parse(ask({ input: "Hello", text: { format: form } }))).output_parsed;

const questions = [
  { type: "predicate", instructions: "The top left is red." },
  { type: "choice", instructions: "What color is the top right?", choices: [{ value: "red" }, { value: "blue" }] },
];
const { answers } = await client.decisions.create({ model, input: [{ role: "user", content: picture }], questions });
got.decisions = [answers[0].probability > 0.9, answers[1].choice];

const bytes = Buffer.from(pictures[0].split(",")[1], "base64");
const file = await client.files.create({ file: await toFile(bytes, "grid.png"), purpose: "vision" });
const named = { role: "user", content: [{ type: "file", file: { file_id: file.id } }, { type: "text", text: "Describe this image." }] };
got.file = [say(await client.chat.completions.create(ask({ messages: [named] }))), (await client.files.delete(file.id)).deleted];

got.errors = [];
for (const fields of [{ model: "other" }, { temperature: 9 }, { messages: [user("hi", "file:///etc/passwd")] }]) {
  try {
    await client.chat.completions.create(ask({ messages: [user("Hello")], ...fields }));
  } catch (error) {
    got.errors.push([error.constructor.name, error.status, error.param, error.code]);
  }
}
try {
  for await (const _ of await client.chat.completions.create(ask({ messages: [user("word ".repeat(6000))], stream: true })));
} catch (error) {
  got.errors.push([error.constructor.name, error.status, error.param, error.code]);
}
console.log(JSON.stringify(got));
