// The panel: how answers are drawn, and the conversation as code.

import { asCurl, asPython } from "./code.js";
import { ask } from "./key.js";
import { say } from "./status.js";

const get = (id) => document.getElementById(id);
const panel = get("settings");
const toggle = get("open-settings");

export const system = () => get("system").value.trim();

// The fields of a request that are set here. The server judges them.
export function fields() {
  const numbers = ["temperature", "top_p", "max_tokens"].map((name) => [name, get(name).valueAsNumber]);
  return Object.fromEntries(numbers.filter(([, number]) => !Number.isNaN(number)));
}

export function enableCopy(enabled) {
  get("copy-curl").disabled = get("copy-python").disabled = !enabled;
}

// `body` makes the request that is copied.
export function start(body) {
  get("copy-curl").addEventListener("click", () => copy(asCurl(body())));
  get("copy-python").addEventListener("click", () => copy(asPython(body())));
}

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code);
    say("Copied.");
  } catch { // no clipboard without https, or it was not allowed
    get("code").value = code;
    get("code-dialog").showModal();
    get("code").select();
  }
}

toggle.addEventListener("click", () => {
  panel.hidden = !panel.hidden;
  toggle.setAttribute("aria-expanded", String(!panel.hidden));
});
get("change-key").addEventListener("click", () => ask("It goes with every request from now on."));
for (const output of panel.querySelectorAll("output")) {
  const slider = get(output.htmlFor.value);
  const tell = () => (output.value = slider.value);
  slider.addEventListener("input", tell);
  tell();
}
for (const button of document.querySelectorAll("[data-closes]")) button.addEventListener("click", () => button.closest("dialog").close());
