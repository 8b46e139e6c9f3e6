// The gateway's API. URLs are relative to the page, since the app may be mounted below any path.

import { askForKey, authHeaders } from "./key.js";
import { t } from "./language.js";
import { events } from "./sse.js";

export const urlOf = (path) => new URL(path, document.baseURI).href;

// Sends a request. If the server requires a key, asks the user for the key and sends the request again. Throws an Error with the server's
// message.
async function request(path, options = {}) {
  for (;;) {
    const response = await fetch(urlOf(path), { ...options, headers: { ...options.headers, ...authHeaders() } }).catch((error) => {
      throw error.name === "AbortError" ? error : new Error(t("unreachable"));
    });
    if (response.ok) return response;
    const body = await response.json().catch(() => null);
    const message = body?.error?.message ?? t("refused", { status: response.status });
    if (response.status !== 401 || !(await askForKey(message))) throw new Error(message);
    options.signal?.throwIfAborted();
  }
}

const post = (path, body, signal) =>
  request(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

// Returns the names of the server's models.
export async function models() {
  const list = await (await request("v1/models")).json();
  return list.data.map((model) => model.id);
}

// Yields the chunks of a streamed answer. Throws an Error if the answer is incomplete.
export async function* chat(body, signal) {
  const response = await post("v1/chat/completions", body, signal);
  for await (const data of events(response.body)) {
    signal.throwIfAborted(); // further events may have come with this one
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
  throw new Error(t("brokenOff"));
}

export const vote = (body) => post("feedback", body);
