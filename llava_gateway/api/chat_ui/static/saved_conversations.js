// Saves the open conversation in this browser, and opens saved ones. The URL's fragment has the id of the open conversation: a reload
// opens it again, and each tab has its own.

import { connectList, showList } from "./conversation_list.js";
import { fromRecord, newConversation } from "./conversation.js";
import * as store from "./conversation_store.js";
import { onLanguage, t } from "./language.js";
import { showStatus } from "./status.js";

const removedIds = new Set(); // conversations that the user has removed while an answer may still run
let page; // see connectSavedConversations

// `page` has the functions current() of the open conversation, isRunning() and show(conversation).
export function connectSavedConversations(functions) {
  page = functions;
  open(location.hash.slice(1));
}

// Saves a conversation if it has a question. If another tab has changed it, it becomes a copy.
export async function save(conversation) {
  showAddress();
  if (!conversation.turns.length || removedIds.has(conversation.id)) return refresh();
  const outcome = await store.save(conversation);
  if (outcome === "too large") showStatus(t("tooLarge"));
  if (outcome === "changed") {
    const { id } = newConversation();
    Object.assign(conversation, { id, revision: 0 });
    if (conversation === page.current()) showStatus(t("copied"));
    return save(conversation);
  }
  await refresh();
}

async function open(id) {
  const found = id && (await store.read(id));
  if (found && !(id === page.current().id && page.isRunning())) page.show(fromRecord(found));
  showAddress();
  await refresh();
}

async function refresh() {
  showList(await store.summaries(), page.current().id);
  document.getElementById("kept").textContent = t((await store.isKept()) ? "welcomeKept" : "welcomeNotKept");
}

function showAddress() {
  const { id, turns } = page.current();
  history.replaceState(null, "", turns.length ? `#${id}` : location.pathname + location.search);
}

async function rename(id, title) {
  const conversation = id === page.current().id ? page.current() : fromRecord(await store.read(id));
  conversation.title = title;
  await save(conversation);
}

// Leaves the open conversation if it was removed.
async function leave(removal, isCurrent) {
  if (isCurrent) {
    removedIds.add(page.current().id);
    page.show(newConversation());
  }
  await removal;
  showAddress();
  await refresh();
}

connectList({
  open,
  rename,
  remove: (id) => leave(store.remove(id), id === page.current().id),
  removeAll: () => leave(store.removeAll(), true),
});
store.onOtherTab((id) => (id === page.current().id && !page.isRunning() ? open(id) : refresh()));
onLanguage(refresh);
addEventListener("hashchange", () => open(location.hash.slice(1)));
addEventListener("pagehide", () => page.current().turns.length && store.save(page.current()));
document.getElementById("system").addEventListener("change", () => save(page.current()));
document.getElementById("json").addEventListener("change", () => save(page.current()));
