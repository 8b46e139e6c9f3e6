// The turns on the page. The model's text is shown as text, never as HTML.

import { showImages } from "./image_list.js";
import { follow, goToLatest } from "./scroll.js";
import { vote } from "./votes.js";

const turnTemplate = document.getElementById("turn-template");
const answerTemplate = document.getElementById("answer-template");
const turnList = document.getElementById("turns");

// Removes all turns after the first `count`.
export function truncate(count) {
  [...turnList.children].slice(count).forEach((turn) => turn.remove());
}

// Adds a turn with its question. `onEdit` is called when the user wants to edit the question.
export function addTurn({ text, images }, onEdit) {
  const turn = turnTemplate.content.firstElementChild.cloneNode(true);
  showImages(turn.querySelector(".images"), images);
  turn.querySelector(".question .text").textContent = text;
  turn.querySelector(".edit").addEventListener("click", onEdit);
  turnList.append(turn);
}

// Adds a column's answer to a turn, or replaces the earlier answer. Returns a function that shows added text and the answer's state.
export function addAnswer(answer, turn, column, onAgain) {
  const view = answerTemplate.content.firstElementChild.cloneNode(true);
  const [text, error, cost] = [".text", ".error", ".cost"].map((name) => view.querySelector(name));
  const textNode = text.appendChild(document.createTextNode(""));
  const answers = turnList.children[turn].querySelector(".answers");
  view.setAttribute("aria-label", `Answer of ${answer.body.model}`);
  view.querySelector(".model").textContent = answer.body.model;
  view.querySelector(".again").addEventListener("click", onAgain);
  const votes = view.querySelectorAll("[data-vote]");
  for (const button of votes) button.addEventListener("click", () => vote(answer, votes, button));
  if (answers.children[column]) answers.children[column].replaceWith(view);
  else answers.append(view);
  goToLatest();
  return (added) => {
    textNode.appendData(added);
    cost.textContent = answer.cost;
    if (answer.done) {
      view.setAttribute("aria-busy", "false");
      view.classList.toggle("empty", !answer.text);
      error.textContent = answer.error;
      error.hidden = !answer.error;
    }
    follow();
  };
}
