// The conversations of this browser, which all tabs share. Their number and their size are bounded: the oldest conversations are removed.

import { record, searchText, titleOf } from "./conversation.js";
import { openDatabase } from "./database.js";

export const LIMITS = { count: 200, characters: 200e6 };
const channel = new BroadcastChannel("llava-gateway");
const database = openDatabase();
let queue = Promise.resolve(); // the last save: the saves of this tab do not overtake each other

const change = async (work) => (await database).change(work);

export const isKept = async () => (await database).isKept;

// Calls a function with the id of each conversation that another tab has changed.
export const onOtherTab = (callback) => channel.addEventListener("message", ({ data }) => callback(data));

// Returns {id, title, text, size, updated, revision} of each conversation, the latest first.
export async function summaries() {
  return latestFirst(await change((_, summaries) => summaries.all()));
}

const latestFirst = (summaries) => summaries.sort((a, b) => b.updated - a.updated);

// Returns a conversation, or undefined.
export const read = (id) => change((conversations) => conversations.get(id));

export async function remove(id) {
  await change((...stores) => Promise.all(stores.map((store) => store.delete(id))));
  channel.postMessage(id);
}

export async function removeAll() {
  await change((...stores) => Promise.all(stores.map((store) => store.clear())));
  channel.postMessage("");
}

// Saves a conversation. Returns "saved", "too large", or "changed" if another tab has changed or removed the conversation since it was
// read: then nothing is saved.
export function save(conversation) {
  queue = queue.then(() => write(conversation));
  return queue;
}

async function write(conversation) {
  const content = record(conversation);
  const size = JSON.stringify(content).length;
  const summary = { id: content.id, title: titleOf(conversation), text: searchText(conversation), size, updated: Date.now() };
  if (size > LIMITS.characters) return "too large";
  // A browser may have less space than the limit: then fewer of the other conversations stay.
  for (const share of [1, 0.5, 0.1, 0]) {
    try {
      const outcome = await change((...stores) => put(stores, content, summary, (LIMITS.characters - size) * share));
      if (outcome === "saved") conversation.revision += 1;
      channel.postMessage(content.id);
      return outcome;
    } catch {} // not enough space
  }
  return "too large";
}

// Puts a conversation into the stores, and removes the oldest of the others until they have at most `others` characters.
async function put([conversations, summaries], content, summary, others) {
  const kept = (await summaries.get(content.id))?.revision ?? 0;
  if (kept !== content.revision) return "changed";
  let characters = 0;
  let count = 1;
  for (const { id, size } of latestFirst(await summaries.all())) {
    if (id === content.id) continue;
    characters += size;
    count += 1;
    if (count > LIMITS.count || characters > others) await Promise.all([conversations.delete(id), summaries.delete(id)]);
  }
  const revision = kept + 1;
  await Promise.all([conversations.put({ ...content, revision }), summaries.put({ ...summary, revision })]);
  return "saved";
}
