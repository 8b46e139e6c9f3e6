// A request as code that users can run. The code reads the API key from a variable and never contains it.

import { urlOf } from "./api.js";
import { hasKey } from "./key.js";

export function asCurl(body) {
  const key = hasKey() ? ' \\\n  -H "authorization: Bearer $LLAVA_API_KEY"' : "";
  return `curl -s ${urlOf("v1/chat/completions")} \\
  -H 'content-type: application/json'${key} --data-binary @- <<'JSON'
${JSON.stringify(body, null, 2)}
JSON
`;
}

export function asPython(body) {
  const key = hasKey() ? 'os.environ["LLAVA_API_KEY"]' : '"none"';
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},\n`);
  return `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${urlOf("v1")}", api_key=${key})
completion = client.chat.completions.create(
${fields.join("")})
print(completion.choices[0].message.content)
`;
}

// Returns a value as Python code. JSON is valid Python for strings, numbers, lists and objects.
const literal = (value) => JSON.stringify(value, null, 4).replaceAll("\n", "\n    ");
