// The chat: reactions to the user's actions.

import { Answer } from "./answer.js";
import * as api from "./api.js";
import * as composer from "./composer.js";
import { messagesFor } from "./conversation.js";
import * as settings from "./settings.js";
import { announce, showStatus } from "./status.js";
import { addAnswer, addTurn, truncate } from "./view.js";

const get = (id) => document.getElementById(id);
const selects = [get("model"), get("second-model")];
let comparing = false; // whether both models answer
let turns = [];
let editing = null; // the index of the turn that is edited; sending replaces it and all later turns
let draft = composer.EMPTY; // the composer's content before the edit
let running = null; // the AbortController of the running answers

async function send() {
  const question = await composer.question();
  if (running || !question) return;
  truncateTurns(editing ?? turns.length);
  composer.fill(editing === null ? composer.EMPTY : draft);
  setEditing(null);
  const turn = turns.push({ question, answers: [] }) - 1;
  addTurn(question, () => edit(turn));
  answer(turn, comparing ? [0, 1] : [0]);
}

// Answers the question of a turn, in one or both columns.
async function answer(turn, columns) {
  running = new AbortController();
  refresh();
  showStatus("");
  announce("The answer is being written.");
  if (!selects[0].value) await loadModels();
  const answers = running.signal.aborted ? [] : await Promise.all(columns.map((column) => answerIn(column, turn)));
  running = null;
  refresh();
  announce(answers.map((answer) => answer.text && `${answer.body.model}: ${answer.text}`).join("\n"));
}

async function answerIn(column, turn) {
  const answer = new Answer(body(turn, column));
  turns[turn].answers[column] = answer;
  await answer.run(running.signal, addAnswer(answer, turn, column, () => again(turn, column)));
  return answer;
}

function again(turn, column) {
  if (running) return;
  composer.focus();
  answer(turn, [column]);
}

// Returns the request for a turn's answer.
function body(turn, column) {
  return { model: selects[column].value, messages: messagesFor(turns, turn, column, settings.system()), ...settings.fields() };
}

function stop() {
  running?.abort();
  composer.focus();
}

async function edit(turn) {
  if (editing === null) draft = (await composer.question()) ?? composer.EMPTY;
  setEditing(turn);
  composer.fill(turns[turn].question);
}

function cancelEdit() {
  setEditing(null);
  composer.fill(draft);
}

function setEditing(turn) {
  editing = turn;
  get("editing").hidden = turn === null;
}

function clear() {
  running?.abort();
  truncateTurns(0);
  setEditing(null);
  composer.fill(composer.EMPTY);
  showStatus("");
  refresh();
}

// Removes all turns after the first `count`.
function truncateTurns(count) {
  turns = turns.slice(0, count);
  truncate(count);
}

// Shows and enables the controls that fit the state.
function refresh() {
  document.body.classList.toggle("running", running !== null);
  get("send").hidden = running !== null;
  get("stop").hidden = running === null;
  get("welcome").hidden = turns.length > 0;
  get("clear").disabled = !turns.length;
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
get("clear").addEventListener("click", clear);
get("compare").addEventListener("click", () => {
  comparing = !comparing;
  get("compare").setAttribute("aria-pressed", String(comparing));
  selects[1].hidden = !comparing;
});
settings.connectCopyButtons(() => body(turns.length - 1, 0));
refresh();
loadModels();
