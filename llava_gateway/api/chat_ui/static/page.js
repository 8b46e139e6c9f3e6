// The chat: reactions to the user's actions.

import { Answer } from "./answer.js";
import * as api from "./api.js";
import * as composer from "./composer.js";
import { newConversation, totalTokens } from "./conversation.js";
import { connectSavedConversations, save } from "./saved_conversations.js";
import { onLanguage, t } from "./language.js";
import { messagesFor } from "./messages.js";
import * as settings from "./settings.js";
import { announce, showStatus } from "./status.js";
import { addAnswer, addTurn, truncate } from "./view.js";

const get = (id) => document.getElementById(id);
const selects = [get("model"), get("second-model")];
let comparing = false; // whether both models answer
let conversation = newConversation();
let editing = null; // the index of the turn that is edited; sending replaces it and all later turns
let draft = composer.EMPTY; // the composer's content before the edit
let running = null; // the AbortController of the running answers

async function send() {
  const question = await composer.question();
  if (running || !question) return;
  truncateTurns(editing ?? conversation.turns.length);
  composer.fill(editing === null ? composer.EMPTY : draft);
  setEditing(null);
  const turn = conversation.turns.push({ question, answers: [] }) - 1;
  addTurn(question, () => edit(turn));
  answer(turn, comparing ? [0, 1] : [0]);
}

// Answers the question of a turn, in one or both columns.
async function answer(turn, columns) {
  const own = (running = new AbortController());
  const asked = conversation;
  refresh();
  showStatus("");
  announce(t("writing"));
  if (!selects[0].value) await loadModels();
  save(asked);
  const answers = own.signal.aborted ? [] : await Promise.all(columns.map((column) => answerIn(column, turn, own.signal)));
  save(asked);
  if (running !== own) return; // the user has left the conversation
  running = null;
  refresh();
  announce(answers.map(({ model, text }) => text && `${model}: ${text}`).join("\n"));
}

async function answerIn(column, turn, signal) {
  const { system, isJson, turns } = conversation;
  const request = body(turn, column);
  const answer = new Answer({ model: request.model, system, isJson, done: false });
  turns[turn].answers[column] = answer;
  await answer.run(request, signal, showAnswer(answer, turn, column));
  return answer;
}

function showAnswer(answer, turn, column) {
  const { turns } = conversation;
  return addAnswer(answer, turn, column, {
    onAgain: () => again(turn, column),
    messages: () => messagesFor(turns, turn, column, answer.system),
  });
}

function again(turn, column) {
  if (running) return;
  composer.focus();
  answer(turn, [column]);
}

// Returns the request for a turn's answer.
function body(turn, column) {
  const { turns, system, isJson } = conversation;
  const format = isJson ? { response_format: { type: "json_object" } } : {};
  return { model: selects[column].value, messages: messagesFor(turns, turn, column, system), ...settings.fields(), ...format };
}

function stop() {
  running?.abort();
  composer.focus();
}

async function edit(turn) {
  if (editing === null) draft = (await composer.question()) ?? composer.EMPTY;
  setEditing(turn);
  composer.fill(conversation.turns[turn].question);
}

function cancelEdit() {
  setEditing(null);
  composer.fill(draft);
}

function setEditing(turn) {
  editing = turn;
  get("editing").hidden = turn === null;
}

// Shows another conversation, or the same one again. The composer keeps the next question.
function show(shown) {
  if (shown !== conversation) {
    running?.abort();
    running = null;
    if (editing !== null) cancelEdit();
    showStatus("");
  }
  conversation = shown;
  truncate(0);
  conversation.turns.forEach(({ question, answers }, turn) => {
    addTurn(question, () => edit(turn));
    answers.forEach((answer, column) => showAnswer(answer, turn, column)(answer.text));
  });
  settings.showConversation(conversation);
  refresh();
}

// Removes all turns after the first `count`.
function truncateTurns(count) {
  conversation.turns.splice(count);
  truncate(count);
}

// Shows and enables the controls that fit the state.
function refresh() {
  const { turns } = conversation;
  document.body.classList.toggle("running", running !== null);
  get("send").hidden = running !== null;
  get("stop").hidden = running === null;
  get("welcome").hidden = turns.length > 0;
  get("new").disabled = !turns.length;
  const total = totalTokens(conversation);
  get("total").textContent = total.sum ? t("total", total) : "";
  settings.enableCopy(turns.length > 0);
}

async function loadModels() {
  try {
    const names = await api.models();
    for (const select of selects) select.replaceChildren(...names.map((name) => new Option(name)));
    selects[1].selectedIndex = names.length - 1;
    get("compare").hidden = names.length < 2;
  } catch (error) {
    showStatus(error.message);
  }
}

get("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
get("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (running) stop();
  else if (editing !== null) cancelEdit();
});
get("stop").addEventListener("click", stop);
get("cancel-edit").addEventListener("click", cancelEdit);
get("new").addEventListener("click", () => {
  show(newConversation());
  save(conversation);
  composer.focus();
});
get("compare").addEventListener("click", () => {
  comparing = !comparing;
  get("compare").setAttribute("aria-pressed", String(comparing));
  selects[1].hidden = !comparing;
});
settings.onConversationSettings((changed) => Object.assign(conversation, changed));
settings.connectCopyButtons(
  () => body(conversation.turns.length - 1, 0),
  () => conversation,
);
connectSavedConversations({ current: () => conversation, isRunning: () => running !== null || editing !== null, show });
onLanguage(() => running || show(conversation));
refresh();
loadModels();
