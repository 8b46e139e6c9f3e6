// A request as code that people can run: the key is named, never shown.

import { address } from "./api.js";
import { hasKey } from "./key.js";

export function asCurl(body) {
  const key = hasKey() ? ' \\\n  -H "authorization: Bearer $LLAVA_API_KEY"' : "";
  return `curl -s ${address("v1/chat/completions")} \\
  -H 'content-type: application/json'${key} --data-binary @- <<'JSON'
${JSON.stringify(body, null, 2)}
JSON
`;
}

export function asPython(body) {
  const key = hasKey() ? 'os.environ["LLAVA_API_KEY"]' : '"none"';
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},\n`);
  return `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${address("v1")}", api_key=${key})
completion = client.chat.completions.create(
${fields.join("")})
print(completion.choices[0].message.content)
`;
}

// Strings, numbers, lists and objects of them look the same in JSON and in Python.
const literal = (value) => JSON.stringify(value, null, 4).replaceAll("\n", "\n    ");
