// The settings panel: the parameters of requests, and buttons that copy or export the conversation.

import { copy } from "./clipboard.js";
import { asCurl, asPython } from "./code.js";
import { exportJson, exportMarkdown } from "./export.js";
import { askForKey } from "./key.js";
import { t } from "./language.js";

const get = (id) => document.getElementById(id);
const panel = get("settings");
const toggle = get("open-settings");

// Shows the settings of a conversation, which the user may change.
export function showConversation({ system, isJson }) {
  get("system").value = system;
  get("json").checked = isJson;
}

// Calls a function with the settings of the conversation whenever the user changes them.
export function onConversationSettings(callback) {
  for (const id of ["system", "json"]) {
    get(id).addEventListener("input", () => callback({ system: get("system").value.trim(), isJson: get("json").checked }));
  }
}

// Returns the parameters that are set, as fields of a request. The server checks their values.
export function fields() {
  const numbers = ["temperature", "top_p", "max_tokens"].map((name) => [name, get(name).valueAsNumber]);
  return Object.fromEntries(numbers.filter(([, number]) => !Number.isNaN(number)));
}

export function enableCopy(enabled) {
  for (const id of ["copy-curl", "copy-python", "export-json", "export-markdown"]) get(id).disabled = !enabled;
}

// Connects the copy buttons and the export buttons. `body` returns the request to copy, `conversation` the conversation to export.
export function connectCopyButtons(body, conversation) {
  get("copy-curl").addEventListener("click", () => copy(asCurl(body())));
  get("copy-python").addEventListener("click", () => copy(asPython(body())));
  get("export-json").addEventListener("click", () => exportJson(conversation()));
  get("export-markdown").addEventListener("click", () => exportMarkdown(conversation()));
}

toggle.addEventListener("click", () => {
  panel.hidden = !panel.hidden;
  toggle.setAttribute("aria-expanded", String(!panel.hidden));
});
get("change-key").addEventListener("click", () => askForKey(t("keyNew")));
for (const output of panel.querySelectorAll("output")) {
  const slider = get(output.htmlFor.value);
  const showValue = () => (output.value = slider.value);
  slider.addEventListener("input", showValue);
  showValue();
}
for (const button of document.querySelectorAll("[data-closes]")) button.addEventListener("click", () => button.closest("dialog").close());
