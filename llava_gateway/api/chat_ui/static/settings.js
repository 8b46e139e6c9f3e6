// The settings panel: the sampling parameters of requests, and buttons that copy the conversation as code.

import { asCurl, asPython } from "./code.js";
import { askForKey } from "./key.js";
import { showStatus } from "./status.js";

const get = (id) => document.getElementById(id);
const panel = get("settings");
const toggle = get("open-settings");

export const system = () => get("system").value.trim();

// Returns the parameters that are set, as fields of a request. The server checks their values.
export function fields() {
  const numbers = ["temperature", "top_p", "max_tokens"].map((name) => [name, get(name).valueAsNumber]);
  return Object.fromEntries(numbers.filter(([, number]) => !Number.isNaN(number)));
}

export function enableCopy(enabled) {
  get("copy-curl").disabled = get("copy-python").disabled = !enabled;
}

// Connects the copy buttons. `body` returns the request to copy.
export function connectCopyButtons(body) {
  get("copy-curl").addEventListener("click", () => copy(asCurl(body())));
  get("copy-python").addEventListener("click", () => copy(asPython(body())));
}

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code);
    showStatus("Copied.");
  } catch { // the page is not served by https, or the user has not allowed the clipboard
    get("code").value = code;
    get("code-dialog").showModal();
    get("code").select();
  }
}

toggle.addEventListener("click", () => {
  panel.hidden = !panel.hidden;
  toggle.setAttribute("aria-expanded", String(!panel.hidden));
});
get("change-key").addEventListener("click", () => askForKey("It goes with every request from now on."));
for (const output of panel.querySelectorAll("output")) {
  const slider = get(output.htmlFor.value);
  const showValue = () => (output.value = slider.value);
  slider.addEventListener("input", showValue);
  showValue();
}
for (const button of document.querySelectorAll("[data-closes]")) button.addEventListener("click", () => button.closest("dialog").close());
