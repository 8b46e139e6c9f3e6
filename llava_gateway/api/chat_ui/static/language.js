// The language of the page: the user's choice, or the browser's first language that texts.js has, or English.

import { TEXTS } from "./texts.js";

const STORAGE_NAME = "llava-gateway-language";
const onChange = [];
let current = stored() ?? navigator.languages.map((name) => name.split("-")[0]).find((name) => name in TEXTS) ?? "en";

// Returns the stored choice. A browser may refuse storage.
function stored() {
  try {
    const name = localStorage.getItem(STORAGE_NAME);
    return name in TEXTS ? name : null;
  } catch {
    return null;
  }
}

// Returns a text with its values, such as {name}.
export const t = (key, values = {}) => TEXTS[current][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);

// Returns a number as the language writes it.
export const number = (value, digits) => value.toLocaleString(current, { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: false });

// Sets the texts of an element and of all elements below it: `data-text` is the text, `data-label` the accessible name (and the tooltip of
// a button), `data-hint` the placeholder.
export function applyTexts(root) {
  for (const element of [root, ...root.querySelectorAll("[data-text], [data-label], [data-hint], template")]) {
    const { text, label, hint } = element.dataset ?? {};
    if (text) element.textContent = t(text);
    if (label) element.setAttribute("aria-label", t(label));
    if (label && element.tagName === "BUTTON") element.title = t(label);
    if (hint) element.placeholder = t(hint);
    if (element.tagName === "TEMPLATE") applyTexts(element.content);
  }
}

// Calls a function after each change of the language.
export const onLanguage = (callback) => onChange.push(callback);

function apply() {
  document.documentElement.lang = current;
  applyTexts(document.documentElement);
}

const select = document.getElementById("language");
select.replaceChildren(...Object.entries(TEXTS).map(([name, { language }]) => new Option(language, name)));
select.value = current;
select.addEventListener("change", () => {
  current = select.value;
  try {
    localStorage.setItem(STORAGE_NAME, current);
  } catch {} // the choice lasts until the page is closed
  apply();
  for (const callback of onChange) callback();
});
apply();
