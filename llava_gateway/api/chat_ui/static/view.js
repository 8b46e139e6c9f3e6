// Turns on the page. What the model writes is text, never HTML.

import { show } from "./pictures.js";
import { follow, goToLatest } from "./scroll.js";
import { vote } from "./votes.js";

const turnTemplate = document.getElementById("turn-template");
const answerTemplate = document.getElementById("answer-template");
const place = document.getElementById("turns");

// Keeps the first `count` turns.
export function keep(count) {
  [...place.children].slice(count).forEach((turn) => turn.remove());
}

export function addTurn({ text, pictures }, onEdit) {
  const turn = turnTemplate.content.firstElementChild.cloneNode(true);
  show(turn.querySelector(".pictures"), pictures);
  turn.querySelector(".question .text").textContent = text;
  turn.querySelector(".edit").addEventListener("click", onEdit);
  place.append(turn);
}

// A view of a column's answer, in the place of an earlier one if there is one. Returns what is to be called as the answer grows.
export function addAnswer(answer, turn, column, onAgain) {
  const view = answerTemplate.content.firstElementChild.cloneNode(true);
  const [text, error, cost] = [".text", ".error", ".cost"].map((name) => view.querySelector(name));
  const words = text.appendChild(document.createTextNode(""));
  const answers = place.children[turn].querySelector(".answers");
  view.setAttribute("aria-label", `Answer of ${answer.body.model}`);
  view.querySelector(".model").textContent = answer.body.model;
  view.querySelector(".again").addEventListener("click", onAgain);
  const votes = view.querySelectorAll("[data-vote]");
  for (const button of votes) button.addEventListener("click", () => vote(answer, votes, button));
  if (answers.children[column]) answers.children[column].replaceWith(view);
  else answers.append(view);
  goToLatest();
  return (added) => {
    words.appendData(added);
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
