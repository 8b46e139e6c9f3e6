// The list of kept conversations: search, open, rename, delete. On a narrow screen it is a drawer, which closes when one is opened.

import { t } from "./language.js";

const get = (id) => document.getElementById(id);
const [panel, toggle, list, search, note, removeAll] = ["conversations", "open-conversations", "conversation-list", "search", "no-conversations", "delete-all"].map(get);
const template = get("conversation-template");
const dialog = get("delete-dialog");
const narrow = matchMedia("(max-width: 60rem)");
let shown = { summaries: [], current: "" };
let onAction = {};

// Connects the list. `actions` has the functions open(id), rename(id, title), remove(id) and removeAll().
export function connectList(actions) {
  onAction = actions;
}

// Shows the summaries of conversation_store.js; `current` is the id of the open conversation.
export function showList(summaries, current) {
  shown = { summaries, current };
  if (!list.querySelector("input")) refresh(); // not while the user changes a title
}

function refresh() {
  const words = search.value.trim().toLowerCase();
  const found = shown.summaries.filter(({ text, title }) => text.includes(words) || title.toLowerCase().includes(words));
  const focused = document.activeElement?.closest?.(".conversation")?.dataset.id;
  list.replaceChildren(...found.map(listItem));
  if (focused) [...list.children].find((item) => item.dataset.id === focused)?.querySelector(".open").focus();
  note.textContent = t(shown.summaries.length ? "nothingFound" : "noConversations");
  note.hidden = found.length > 0;
  removeAll.hidden = !shown.summaries.length;
}

function listItem({ id, title: kept }) {
  const item = template.content.firstElementChild.cloneNode(true);
  const [open, rename, remove] = item.children;
  const title = kept || t("untitled");
  item.dataset.id = id;
  open.textContent = title;
  open.title = title;
  if (id === shown.current) open.setAttribute("aria-current", "true");
  open.addEventListener("click", () => {
    if (narrow.matches) show(false);
    onAction.open(id);
  });
  label(rename, t("rename", { title })).addEventListener("click", () => editTitle(item, id, title));
  label(remove, t("delete", { title })).addEventListener("click", () => confirm(t("deleteTitle"), title, () => onAction.remove(id)));
  return item;
}

function label(button, text) {
  button.setAttribute("aria-label", text);
  button.title = text;
  return button;
}

// Shows a field for the title. Enter and leaving the field keep the new title, Esc keeps the old one.
function editTitle(item, id, title) {
  const field = document.createElement("input");
  field.value = title;
  field.maxLength = 200;
  field.setAttribute("aria-label", t("title"));
  const end = (isKept) => {
    field.onblur = null;
    const isFocused = document.activeElement === field;
    field.remove();
    refresh();
    if (isFocused) [...list.children].find(({ dataset }) => dataset.id === id)?.querySelector(".rename").focus();
    const text = field.value.trim();
    if (isKept && text && text !== title) onAction.rename(id, text);
  };
  field.onblur = () => end(true);
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault(); // Enter would press the button that gets the focus
    event.stopPropagation();
    end(event.key === "Enter");
  });
  item.replaceChildren(field);
  field.select();
  field.focus();
}

// Asks the user before something is deleted.
function confirm(question, what, onConfirmed) {
  get("delete-title").textContent = question;
  get("delete-what").textContent = what;
  dialog.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    dialog.close();
    onConfirmed();
  };
  dialog.showModal();
}

function show(isShown) {
  panel.hidden = !isShown;
  toggle.setAttribute("aria-expanded", String(isShown));
}

toggle.addEventListener("click", () => {
  show(panel.hidden);
  if (!panel.hidden && narrow.matches) search.focus();
});
panel.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !narrow.matches) return;
  event.stopPropagation();
  show(false);
  toggle.focus();
});
search.addEventListener("input", refresh);
removeAll.addEventListener("click", () => confirm(t("deleteAllTitle"), t("allConversations"), () => onAction.removeAll()));
narrow.addEventListener("change", () => show(!narrow.matches));
show(!narrow.matches);
