// The gateway's API. Addresses are relative to the page, which may be mounted anywhere.

import { ask, headers } from "./key.js";
import { events } from "./sse.js";

export const address = (path) => new URL(path, document.baseURI).href;

// Throws an Error in the server's words. Asks for a key when the server wants one, and tries again.
async function request(path, options = {}) {
  for (;;) {
    const response = await fetch(address(path), { ...options, headers: { ...options.headers, ...headers() } }).catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
    });
    if (response.ok) return response;
    const body = await response.json().catch(() => null);
    const message = body?.error?.message ?? `The server answered ${response.status}.`;
    if (response.status !== 401 || !(await ask(message))) throw new Error(message);
    options.signal?.throwIfAborted();
  }
}

const post = (path, body, signal) =>
  request(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

export async function models() {
  const list = await (await request("v1/models")).json();
  return list.data.map((model) => model.id);
}

// The chunks of a streamed answer.
export async function* chat(body, signal) {
  const response = await post("v1/chat/completions", body, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
  throw new Error("The connection broke off before the answer was whole.");
}

export const vote = (body) => post("feedback", body);
